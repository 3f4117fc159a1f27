"""Work that must not overlap anywhere in the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
from sqlalchemy.util.concurrency import await_only, in_greenlet

from llmemory.concurrency.forks import ProcessLock

__all__ = ["Turn"]

PAUSE_S = 0.005


class Turn:
    """A lock between threads, and between tasks of any event loop, that never blocks a loop.

    Whoever holds it may take it again.
    """

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._holder: object = None

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Take it in a task."""
        # A lock of anyio's belongs to one event loop.
        while not self._lock.acquire(blocking=False):  # noqa: ASYNC110
            await anyio.sleep(PAUSE_S)
        with self._held():
            yield

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take it in a thread, or in what SQLAlchemy's ``run_sync`` runs."""
        if self._holder is _caller():
            yield
            return
        while not self._lock.acquire(blocking=not in_greenlet()):
            await_only(anyio.sleep(PAUSE_S))
        with self._held():
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._holder = _caller()
        try:
            yield
        finally:
            self._holder = None
            self._lock.release()


def _caller() -> object:
    with suppress(RuntimeError):
        if (task := asyncio.current_task()) is not None:
            return task
    return threading.current_thread()
