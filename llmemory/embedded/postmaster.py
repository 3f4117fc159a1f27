"""PostgreSQL's main process: finding, starting and stopping the one of a data folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llmemory.embedded import sockets
from llmemory.embedded.account import Account
from llmemory.errors import StorageUnavailable

__all__ = ["STOP_SECONDS", "Postmaster"]

STOP_SECONDS = 30

_START_SECONDS = 60
_ORPHAN_SECONDS = 5


class _Found(NamedTuple):
    """A server that runs, as its file ``postmaster.pid`` describes it."""

    pid: int
    sockets: Path
    is_ready: bool


class Postmaster:
    """The server of a data folder. Hold the start lock while calling its methods.

    Attributes:
        folder: Where the data lies.
        sockets: The folder of its socket, once it runs.
    """

    def __init__(self, folder: Path, account: Account, programs: Path) -> None:
        self.folder = folder
        self.sockets = folder
        self._account = account
        self._programs = programs
        self._file = folder / "postmaster.pid"
        self._log = folder / "server.log"

    def ensure_running(self, settings: Mapping[str, str]) -> None:
        """Start the server with these settings unless it runs, and wait until it answers.

        Raises:
            StorageUnavailable: It did not start or was not ready in time.
        """
        begin = time.monotonic()
        while not self._wait_until_ready(begin + _START_SECONDS):
            self._launch(settings)
            if self._wait_until_ready(begin + _START_SECONDS):
                break
            # Processes of a server that was killed live on for a moment.
            has_orphans = "pre-existing shared memory block" in self._read_log()
            if not has_orphans or time.monotonic() > begin + _ORPHAN_SECONDS:
                raise self._failure("did not start")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server if it runs."""
        found = self._find()
        # pg_ctl signals the process id in the file, whatever runs under that number now.
        if found is not None and self._is_postmaster(found.pid):
            self._control("stop", STOP_SECONDS, "--mode=fast")
        if self.sockets != self.folder:
            with contextlib.suppress(OSError):
                self.sockets.rmdir()

    def _wait_until_ready(self, deadline: float) -> bool:
        """Return whether a server runs, after waiting while it starts, recovers or stops."""
        while (found := self._find()) is not None:
            if found.is_ready:
                self.sockets = found.sockets
                return True
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {_START_SECONDS} seconds")
            time.sleep(0.05)
        return False

    def _find(self) -> _Found | None:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        lines = [os.fsdecode(line) for line in content.split(b"\n")] + [""] * 8
        if not lines[0].isdecimal():
            return None
        pid, folder, state = int(lines[0]), Path(lines[4]), lines[7].strip()
        answers = bool(lines[4]) and sockets.answers(folder)
        if not answers and not self._is_postmaster(pid):
            return None
        return _Found(pid, folder, answers and state == "ready")

    def _is_postmaster(self, pid: int) -> bool:
        """Return whether a process is our server, not one that got the number of a dead one."""
        try:
            if Path("/proc/self/cwd").exists():
                return Path(f"/proc/{pid}/cwd").samefile(self.folder)
            os.kill(pid, 0)
        except OSError:
            return False
        return True

    def _launch(self, settings: Mapping[str, str]) -> None:
        self.sockets = sockets.make_folder(self.folder, self._account)
        # No server runs. A process id in a file left by a crash may by now be another process,
        # which PostgreSQL would take for the server. Whether parts of the old server are left it
        # also finds out from the shared memory that belongs to the folder.
        for stale in (self._file, self.sockets / f"{sockets.NAME}.lock"):
            stale.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._log.replace(self._log.with_suffix(".log.1"))
        options = {
            **settings,
            "listen_addresses": "",
            "port": str(sockets.PORT),
            "unix_socket_directories": str(self.sockets),
        }
        arguments = shlex.join(f"--{name}={value}" for name, value in options.items())
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._account.take(self._log)
            self._control("start", _START_SECONDS, "--options", arguments, output=log)
        finally:
            os.close(log)

    def _control(
        self, action: str, seconds: int, *options: str, output: int = subprocess.DEVNULL
    ) -> None:
        # The data folder and the log are not given as options: pg_ctl puts these, between mere
        # double quotes, into a command for the shell.
        command = [str(self._programs / "pg_ctl"), action, "--silent", "--wait", *options]
        command.append(f"--timeout={seconds}")
        self._account.run(command, seconds + 10, output=output, PGDATA=str(self.folder))

    def _read_log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _failure(self, what: str) -> StorageUnavailable:
        end = "\n".join(self._read_log().strip().splitlines()[-5:])
        return StorageUnavailable(
            f"The embedded server {what}:\n{end}\nThe log {self._log} tells more."
        )
