"""Optional dependencies: what to install when one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing"]


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Import within this what `extra` brings, a package of the same name.

    Raises:
        ImportError: It is not installed; the message holds the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != extra:
            raise
        raise ImportError(
            f'llmemory.{extra} needs an extra that is not installed: `pip install ".[{extra}]"`.',
            name=extra,
        ) from error
