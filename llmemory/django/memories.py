"""The memories of this process, as Django's settings describe them now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from llmemory.core import AsyncMemory
from llmemory.django.configuration import arguments_from, configured_values
from llmemory.memory import Memory

__all__ = ["close_memories", "get_async_memory", "get_memory"]

T = TypeVar("T", bound=Memory | AsyncMemory)


class _Configured(Generic[T]):
    """A memory for each state that the settings were in; in production that is one.

    While Django's tests run, the database is renamed, which no signal tells of, and
    ``override_settings`` changes things for a moment. So the settings are read at every call.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._made: dict[str, T] = {}

    def get(self) -> T:
        values = configured_values()
        key = repr(sorted(values.items()))
        memory = self._made.get(key)
        if memory is None:
            # No lock, which a fork could inherit locked: of two threads one wins, and nothing is
            # connected yet.
            memory = self._made.setdefault(key, self._make(**arguments_from(values)))
        return memory

    def forget(self) -> list[T]:
        made, self._made = self._made, {}
        return list(made.values())


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
    """Close the connections of the blocking memory; the next ``get_memory`` makes a new one.

    The asynchronous memory is dropped too; its connections close with their event loop.
    """
    _asynchronous.forget()
    for memory in _blocking.forget():
        memory.close()
