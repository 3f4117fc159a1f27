"""The operating system's user that owns the data and runs PostgreSQL, which refuses root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmemory.errors import ConfigurationError

if sys.platform != "win32":
    import pwd

__all__ = ["SYSTEM_FOLDER", "SYSTEM_USER", "Account", "unprivileged_account"]

SYSTEM_USER = "llmemory"
SYSTEM_FOLDER = Path("/var/lib/llmemory")


@dataclass(frozen=True)
class Account:
    """A user who is not root: the one who runs this process or, for root, the system user."""

    uid: int
    gid: int
    name: str

    @property
    def is_foreign(self) -> bool:
        """Whether this process runs as root and must become that user."""
        return self.uid != os.geteuid()

    def run(
        self,
        command: Sequence[str | Path],
        seconds: float,
        *,
        output: int = subprocess.PIPE,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as this user, apart from our terminal, working folder and PG* variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.run(
            command,
            check=False,
            user=self.uid if self.is_foreign else None,
            group=self.gid if self.is_foreign else None,
            extra_groups=[] if self.is_foreign else None,
            env={**kept, "LC_ALL": "C", **variables},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            start_new_session=True,
        )

    def take(self, path: Path) -> None:
        """Own a file or folder that this process has just made."""
        if self.is_foreign:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def make_way(self, path: Path) -> None:
        """Make a folder and its missing parents; those that exist keep their permissions."""
        if path.is_dir():
            return
        self.make_way(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755 if self.is_foreign else 0o700)


def unprivileged_account() -> Account:
    """Return this user or, for root, the system user, which is made when missing.

    Raises:
        ConfigurationError: This is root, which cannot make or become the system user.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), "who runs this")
    account = _find_user() or _make_user()
    if account is None or account.uid == 0:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and the system user it could run as cannot be made. "
            f"Run as a normal user, or create a user named {SYSTEM_USER}."
        )
    try:
        account.run(["test"], 10)
    except PermissionError as error:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and this root may not become the user "
            f"{SYSTEM_USER}. Run as a normal user."
        ) from error
    return account


def _find_user() -> Account | None:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


def _make_user() -> Account | None:
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    command = [program, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    subprocess.run([*command, SYSTEM_USER], check=False, capture_output=True, timeout=30)
    # useradd fails while another process is making the same user.
    deadline = time.monotonic() + 2
    while (account := _find_user()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return account
