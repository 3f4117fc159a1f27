"""Locks that a forked process finds free: the thread that held one stays with the parent."""

from __future__ import annotations

import os
import threading

__all__ = ["ProcessLock"]


class ProcessLock:
    """A lock between the threads of one process. For modules to hold: it is never forgotten."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it, and return whether that was possible."""
        return self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()
