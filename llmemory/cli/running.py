"""Calling the library from a command, and the options that commands share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

from cyclopts import Parameter

from llmemory.settings import Settings

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["GivenSettings", "with_memory"]

Result = TypeVar("Result")

GivenSettings: TypeAlias = Annotated[Settings, Parameter(parse=False)]
"""Settings that ``app.launch`` passes in; no option of the command itself."""


def with_memory(settings: Settings, use: Callable[[AsyncMemory], Awaitable[Result]]) -> Result:
    """Return what `use` makes of a memory, which is closed afterwards, after Ctrl-C as well.

    Commands print when the event loop has ended, where Ctrl-C still stops a blocked write.
    """
    # Not at the top of the file: --help need not wait for SQLAlchemy and numpy.
    from llmemory.core import AsyncMemory

    async def run() -> Result:
        memory = AsyncMemory(settings=settings)
        try:
            return await use(memory)
        finally:
            await memory.close()

    return asyncio.run(run())
