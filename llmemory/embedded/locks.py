"""Locks between processes: files under flock, which the kernel frees when their holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llmemory.errors import ConfigurationError, StorageUnavailable

if sys.platform != "win32":
    import fcntl

__all__ = ["close", "close_all_except", "held", "is_free", "share"]

_open_files: set[int] = set()


def share(path: Path) -> int:
    """Return a descriptor that holds the lock shared until it is closed.

    A forked child has a copy of it: the lock lasts until both are closed.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        close(descriptor)
        raise
    return descriptor


def is_free(path: Path) -> bool:
    """Return whether nobody holds the lock, not even shared."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        close(descriptor)
    return True


@contextlib.contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock exclusively.

    Raises:
        StorageUnavailable: It did not become free in time.
    """
    descriptor = _open(path)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"Another process has held the lock {path} for {seconds:.0f} seconds. "
                        "Try again later."
                    ) from None
                time.sleep(0.02)
        try:
            yield
        finally:
            # A child forked meanwhile shares this open file; closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close a lock file, without freeing the lock of a forked child that has it open too."""
    _open_files.discard(descriptor)
    os.close(descriptor)


def close_all_except(kept: set[int]) -> None:
    """Close the files that a forked child got from threads of its parent."""
    for descriptor in _open_files - kept:
        close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise ConfigurationError(
            f"The lock file {path} belongs to another user. Give another data folder."
        )
    _open_files.add(descriptor)
    return descriptor
