"""The memories of this process, as Django's settings describe them now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from llmemory.core import AsyncMemory
from llmemory.django.configuration import arguments_from, configured_values
from llmemory.memory import Memory

__all__ = ["close_memories", "get_async_memory", "get_memory"]

T = TypeVar("T", bound=Memory | AsyncMemory)


class _Configured(Generic[T]):
    """One memory, replaced when the settings say something else than when it was made.

    So it follows Django's test runner to the test database, which no signal tells of, and
    ``override_settings``. A memory that was replaced closes when nobody holds it any more.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._current: tuple[dict[str, Any], T] | None = None

    def get(self) -> T:
        values = configured_values()
        current = self._current
        if current is None or current[0] != values:
            # No lock, which a fork could inherit locked: at worst two threads make one each at
            # first, and nothing is connected yet.
            self._current = current = (values, self._make(**arguments_from(values)))
        return current[1]

    def forget(self) -> T | None:
        current, self._current = self._current, None
        return None if current is None else current[1]


_blocking = _Configured(Memory)
_asynchronous = _Configured(AsyncMemory)


def get_memory() -> Memory:
    """Return the blocking memory, for synchronous views, commands and tasks.

    Nothing is connected before its first call. Call this where you need it instead of keeping
    the memory: it follows changed settings, such as the test database's.

    Raises:
        ConfigurationError: The setting ``LLMEMORY`` is wrong; ``manage.py check`` says so too.
    """
    return _blocking.get()


def get_async_memory() -> AsyncMemory:
    """Return the asynchronous memory, for ``async def`` views. It may meet many event loops.

    Raises:
        ConfigurationError: As for ``get_memory``.
    """
    return _asynchronous.get()


def close_memories() -> None:
    """Close the connections of the blocking memory, and start anew with the next ``get_...``.

    The asynchronous memory is dropped; its connections close with their event loop.
    """
    _asynchronous.forget()
    memory = _blocking.forget()
    if memory is not None:
        memory.close()
