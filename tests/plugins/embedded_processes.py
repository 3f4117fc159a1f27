"""Processes that use the embedded server, and what is seen of it from outside."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest

from llmemory import embedded
from llmemory.embedded.server import release_all

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
FAST = {"fsync": "off", "shared_buffers": "16MB"}
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")

# A process that uses the server until its standard input ends.
CLIENT = f"""
import sys
from pathlib import Path
from llmemory import embedded
server = embedded.start(Path(sys.argv[1]), settings={FAST!r})
print(server.url, flush=True)
sys.stdin.read()
"""


def administration(program: str) -> str:
    """Return where a program of the administrator's lies, which need not be in PATH."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert found is not None
    return found


class Client:
    """Another process running a script."""

    def __init__(self, *arguments: object, script: str = CLIENT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def line(self) -> str:
        """Wait for the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end_input(self) -> None:
        """Let it read the end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def finish(self) -> str:
        """End its input; return what else it printed before it ended well."""
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def has_system_user() -> bool:
    return any(entry.pw_name == "llmemory" for entry in pwd.getpwall())


@pytest.fixture(scope="module")
def system_user() -> Iterator[None]:
    """Leave the machine without the system user if it had none."""
    before = has_system_user()
    yield
    if IS_ROOT and not before and has_system_user():
        subprocess.run([administration("userdel"), "llmemory"], check=False, capture_output=True)


@pytest.fixture
def base(system_user: None) -> Iterator[Path]:
    """A folder that the system user can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="llmemory-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    release_all()
    for running in list(path.rglob("postmaster.pid")):
        embedded.start(running.parent).release()
    shutil.rmtree(path)


def server_pid(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().split()[0])


def stopped(folder: Path) -> bool:
    return not (folder / "postmaster.pid").exists()


def query(url: str, statement: str = "SELECT 1") -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
