"""Uses of a server: the first one of all processes starts it, the last one stops it."""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from llmemory.embedded import data_folder as data_folders
from llmemory.embedded import locks, sockets
from llmemory.embedded.account import unprivileged_account
from llmemory.embedded.postmaster import STOP_SECONDS, Postmaster
from llmemory.embedded.programs import find_programs
from llmemory.errors import ConfigurationError, LLMemoryError, StorageUnavailable

__all__ = ["EmbeddedServer", "release_all", "start"]

_START_LOCK_SECONDS = 180  # Another process may be running initdb and starting the server.

_logger = logging.getLogger(__name__)


class EmbeddedServer:
    """One use of a running server.

    Attributes:
        url: Connection string, for asyncpg as well as for psycopg and libpq.
        data_folder: Where the data lies.
    """

    def __init__(self, postmaster: Postmaster) -> None:
        self.url: str = sockets.url_of(postmaster.sockets)
        self.data_folder: Path = postmaster.folder
        self._postmaster = postmaster

    def release(self) -> None:
        """End this use; the last use of all processes stops the server. Idempotent."""
        with _mutex:
            lock = _uses.pop(self, None)
            if lock is None:
                return
            try:
                # Given up before the wait, so that a process which is leaving at the same moment
                # sees it; whoever gets the start lock last then finds nobody.
                locks.close(lock)
                with locks.held(_beside(self.data_folder, "lock"), STOP_SECONDS):
                    _stop_unless_used(self._postmaster)
            except (OSError, subprocess.SubprocessError, LLMemoryError) as error:
                _logger.debug("Could not stop the server of %s: %s", self.data_folder, error)


_uses: dict[EmbeddedServer, int] = {}  # With the lock file that each holds shared.
_mutex = threading.RLock()


def start(
    data_folder: Path | None = None, *, settings: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """Start the server of a data folder, or join it where it runs. Blocks until it answers.

    Args:
        data_folder: Where the data lies or shall lie; ``default_data_folder()`` when omitted.
        settings: PostgreSQL settings. They have no effect on a server that runs already.

    Returns:
        The running server. Release it when done; the exit of the process does so too.

    Raises:
        ConfigurationError: The binaries are missing or the data folder cannot be used.
        StorageUnavailable: The server did not start.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "The embedded PostgreSQL server does not run on Windows. Use WSL, give a connection "
            "string or set LLMEMORY_DATABASE_URL."
        )
    folder = data_folder or data_folders.default_data_folder()
    # Path.expanduser raises where there is no home, Path.resolve where links form a circle.
    folder = Path(os.path.realpath(os.path.expanduser(folder)))  # noqa: PTH111
    try:
        with _mutex:
            return _join(folder, settings or {})
    except subprocess.SubprocessError as error:
        raise StorageUnavailable(f"The embedded server of {folder} failed: {error}.") from error
    except OSError as error:
        raise ConfigurationError(
            f"The data folder {folder} cannot be used: {error}. Give another data folder or a "
            "connection string, or set LLMEMORY_DATABASE_URL."
        ) from error


def release_all() -> None:
    """End all uses of this process."""
    if not _mutex.acquire(timeout=STOP_SECONDS):
        return  # A thread still starts a server; the exit of the process drops its locks.
    try:
        for use in list(_uses):
            use.release()
    finally:
        _mutex.release()


def _join(folder: Path, settings: Mapping[str, str]) -> EmbeddedServer:
    """Register a use and make sure that the server runs."""
    account = unprivileged_account()
    programs = find_programs(account)
    postmaster = Postmaster(folder, account, programs)
    data_folders.prepare(folder, account)
    with locks.held(_beside(folder, "lock"), _START_LOCK_SECONDS):
        users = locks.share(_beside(folder, "users"))
        try:
            data_folders.fill(folder, account, programs)
            postmaster.ensure_running(settings)
            server = EmbeddedServer(postmaster)
            _uses[server] = users
        except BaseException as error:
            locks.close(users)
            # One that takes long to recover from a crash goes on, for the next attempt.
            if not isinstance(error, StorageUnavailable):
                _stop_unless_used(postmaster)
            raise
    return server


def _stop_unless_used(postmaster: Postmaster) -> None:
    """Stop the server if no process uses it. The start lock must be held."""
    if locks.is_free(_beside(postmaster.folder, "users")):
        postmaster.stop()


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _after_fork_in_child() -> None:
    """Go on with copies of the parent's uses, but not with what its other threads were doing."""
    global _mutex
    _mutex = threading.RLock()
    locks.close_all_except(set(_uses.values()))


atexit.register(release_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork_in_child)
