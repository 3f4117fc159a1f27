from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmemory.concurrency.forks import ProcessLock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_process_finds_a_lock_free() -> None:
    lock = ProcessLock()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lock.acquire).result()
        with warnings.catch_warnings():
            # From Python 3.12 on a fork beside threads is warned of.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            os._exit(0 if lock.acquire(blocking=False) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        assert not lock.acquire(blocking=False)
        lock.release()
        with lock:
            assert not lock.acquire(blocking=False)
        assert lock.acquire(blocking=False)
