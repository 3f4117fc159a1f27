"""Starting a thread and waiting for what it does, also where gevent has patched both.

Under gevent's monkey patching ``threading.Thread`` is a greenlet, and an event loop in it would
hold the thread that all others share. So the bridge's thread is one of the operating system's,
with a hub of its own, in which asyncio's selector, locks and worker threads are gevent's; and
waiting for it leaves the caller's hub to the other greenlets.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["prepare", "start_process", "start_thread", "wait"]

Result = TypeVar("Result")


def start_thread(run: Callable[[], None], name: str) -> None:
    """Run a function in a new thread of the operating system, which no exit waits for."""
    if _is_patched():
        from gevent import get_hub
        from gevent.monkey import get_original

        # Were two threads to make their first hubs at once, each would wait for an import of the
        # other's.
        get_hub()
        get_original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def wait(future: Future[Result], timeout_s: float | None = None) -> Result:
    """Return the future's result once it is there; an interruption leaves the future alone.

    Raises:
        TimeoutError: It was not there in time.
    """
    if _is_patched() and not future.done():
        _wait_in_greenlet(future, timeout_s)
        timeout_s = 0
    return future.result(timeout_s)


def prepare(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop ready to run in a thread of ``start_thread``."""
    if _is_patched():
        loop.set_default_executor(_Greenlets())


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Return a process as ``subprocess.Popen`` starts it, whose pipes any thread may use.

    gevent's own starts processes in the main thread only, and its pipes belong to one thread.
    """
    popen: type[subprocess.Popen[bytes]] = subprocess.Popen
    if not _is_patched():
        return popen(command, **options)
    from gevent.monkey import get_original

    # Looked up in the module, where gevent's does without.
    subprocess.__dict__["_fork_exec"] = get_original("subprocess", "_fork_exec")
    popen = get_original("subprocess", "Popen")
    started: Future[subprocess.Popen[bytes]] = Future()

    def start() -> None:
        try:
            started.set_result(popen(command, **options))
        except BaseException as error:
            started.set_exception(error)

    # In a thread without a hub, which would put off closing what is waited for to be closed.
    get_original("_thread", "start_new_thread")(start, ())
    return wait(started)


def _is_patched() -> bool:
    # Asked anew each time: gunicorn patches after it has loaded an application with --preload.
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _wait_in_greenlet(future: Future[Any], timeout_s: float | None) -> None:
    from gevent import get_hub
    from gevent.event import Event

    arrived = Event()
    # What another thread may use to wake this one's hub; it also keeps the hub from concluding
    # that nothing can happen any more.
    watcher = get_hub().loop.async_()
    watcher.start(arrived.set)
    try:
        future.add_done_callback(lambda _: watcher.send())
        arrived.wait(timeout_s)
    finally:
        watcher.close()


class _Greenlets(ThreadPoolExecutor):
    """Runs blocking functions, which gevent has made cooperative, in the loop's own thread.

    The pool's workers would be greenlets as well, but ones that the interpreter's exit waits for
    in vain and that do not always wake the loop with their result.
    """

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        from gevent import spawn

        loop = asyncio.get_running_loop()
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            loop.call_soon_threadsafe(_nothing)

        spawn(run)
        return future


def _nothing() -> None:
    """Be called, which wakes the loop."""
