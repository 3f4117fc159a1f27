"""One event loop in one thread per process, where blocking callers have their coroutines run.

The thread runs a single coroutine that holds an anyio BlockingPortal, so that everything is
entered and left in one task. It is made at the first call, again in a process that was forked,
and stopped when the interpreter exits.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from anyio.from_thread import BlockingPortal

from llmemory.errors import ClosedError

__all__ = ["Bridge", "bridge"]

Result = TypeVar("Result")

STOP_SECONDS = 10.0


class Bridge:
    """A thread with an event loop, and the way into it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._started: Future[BlockingPortal] = Future()
        # A daemon, and so are anyio's worker threads that it starts: the interpreter would wait
        # for them before it runs the exit handler that stops them.
        self._thread = threading.Thread(target=self._run, name="llmemory", daemon=True)
        self._thread.start()
        self._portal = self._started.result()

    @property
    def is_usable(self) -> bool:
        """Whether it belongs to this process and runs."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def call(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """Run a coroutine in the loop and wait for its result.

        Interrupted by Ctrl-C or another exception, the coroutine is cancelled and waited for, so
        that its connection is back in the pool.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a blocking call within the loop that would have to run it")
        begun, ended = threading.Event(), threading.Event()

        async def run() -> Result:
            begun.set()
            try:
                return await function()
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if not ended.is_set():
                # The future is cancelled at once, the task only when the loop comes to it.
                future.cancel()
                self._portal.start_task_soon(_nothing).result(STOP_SECONDS)
                if begun.is_set():
                    ended.wait(STOP_SECONDS)
            raise

    def stop(self) -> None:
        """Cancel what still runs and end the thread. A forked process leaves its parent's alone."""
        if self.is_usable:
            self._portal.start_task_soon(self._portal.stop, True)
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                raise

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()


async def _nothing() -> None:
    """Give the loop a turn."""


_current: Bridge | None = None
_lock = threading.Lock()
_has_exited = False


def bridge() -> Bridge:
    """Return this process's bridge, made at the first call.

    Raises:
        ClosedError: The interpreter is exiting.
    """
    global _current
    found = _current
    if found is not None and found.is_usable:
        return found
    with _lock:
        if _has_exited:
            raise ClosedError("The interpreter is exiting; no call can be made any more.")
        if _current is None or not _current.is_usable:
            _current = Bridge()
        return _current


def _forget_parent() -> None:
    # The parent's thread does not exist here, and a lock that it held would stay locked.
    global _current, _lock
    _current = None
    _lock = threading.Lock()


@atexit.register
def _stop_at_exit() -> None:
    global _has_exited
    with _lock:
        _has_exited = True
        if _current is not None:
            _current.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
