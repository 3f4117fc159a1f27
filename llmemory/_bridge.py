"""One event loop in one thread per process, where blocking callers have their coroutines run.

The thread is made at the first call, again in a process that was forked, and stopped when the
interpreter exits.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio

from llmemory.concurrency.threads import prepare, start_thread, wait
from llmemory.errors import ClosedError

__all__ = ["Bridge", "bridge"]

Result = TypeVar("Result")

STOP_SECONDS = 10.0


class Bridge:
    """A thread with an event loop, and the way into it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._ended: Future[None] = Future()
        self._stop_requested = asyncio.Event()
        # What cancels each call: its task, and its scope from when that is entered.
        self._running: dict[Future[Any], asyncio.Task[Any] | anyio.CancelScope] = {}
        # Exit waits neither for it nor for the worker threads that it starts, or the handler that
        # stops them would never run.
        start_thread(self._run, "llmemory")

    @property
    def is_usable(self) -> bool:
        """Whether it belongs to this process and runs."""
        return self._pid == os.getpid() and not self._ended.done()

    def call(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """Run a coroutine in the loop and wait for its result.

        Interrupted by Ctrl-C or another exception, the coroutine is cancelled and waited for, so
        that its connection is back in the pool.
        """
        loop = wait(self._started)
        if threading.get_ident() == self._ident:
            raise RuntimeError("a blocking call within the loop that would have to run it")
        future: Future[Result] = Future()
        try:
            loop.call_soon_threadsafe(self._begin, function, future)
            return wait(future)
        except BaseException:
            if not future.done():
                loop.call_soon_threadsafe(self._cancel, future)
                with suppress(Exception, CancelledError):
                    wait(future, STOP_SECONDS)
            raise

    def call_or_begin(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a coroutine in the loop, and wait for it unless this is the loop's own thread.

        Garbage is collected in any thread, and so are finalizers called.
        """
        if threading.get_ident() == self._ident:
            wait(self._started).call_soon(self._begin, function, Future())
        else:
            self.call(function)

    def stop(self) -> None:
        """Cancel what still runs and end the thread. A forked process leaves its parent's alone."""
        if self.is_usable:
            wait(self._started).call_soon_threadsafe(self._stop_requested.set)
            with suppress(TimeoutError):
                wait(self._ended, STOP_SECONDS)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                serving = loop.create_task(self._serve())
                while not serving.done():
                    # Raised by a call's task, they leave the loop as well: but they are that
                    # call's result, and no reason to stop all others.
                    with suppress(SystemExit, KeyboardInterrupt):
                        loop.run_until_complete(serving)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        prepare(loop)
        self._started.set_result(loop)
        await self._stop_requested.wait()
        for running in list(self._running.values()):
            running.cancel()
        # Before this task ends, as anyio's worker threads end with it.
        ended = map(asyncio.wrap_future, self._running)
        await asyncio.gather(*ended, return_exceptions=True)

    def _begin(self, function: Callable[[], Awaitable[Any]], future: Future[Any]) -> None:
        task = asyncio.ensure_future(self._run_call(function, future))
        self._running[future] = task
        task.add_done_callback(partial(self._finish, future))

    async def _run_call(
        self, function: Callable[[], Awaitable[Result]], future: Future[Result]
    ) -> Result:
        # Cancelled through a scope, the coroutine can shield what gives its connection back.
        with anyio.CancelScope() as scope:
            self._running[future] = scope
            return await function()
        raise asyncio.CancelledError

    def _finish(self, future: Future[Any], task: asyncio.Task[Any]) -> None:
        del self._running[future]
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _cancel(self, future: Future[Any]) -> None:
        if (running := self._running.get(future)) is not None:
            running.cancel()


_current: Bridge | None = None
_lock = threading.Lock()
_has_exited = False
_inherited: list[Bridge] = []


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
    if _current is not None:
        # Collected, its unfinished tasks would complain.
        _inherited.append(_current)
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
