"""PgBouncer in transaction mode, before the server of the test run or before another one.

With LLMEMORY_TEST_POOLER=asyncpg, or psycopg, the fixture ``make_memory`` makes its memories
connect through it, by that driver where a test names none: so the behaviour tests pass through it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from llmemory.embedded.account import Account, unprivileged_account
from plugins.server import with_driver

POOLER_VARIABLE = "LLMEMORY_TEST_POOLER"
# Taken before a fixture hides what begins with LLMEMORY_.
POOLER_DRIVER = os.environ.get(POOLER_VARIABLE, "")
STARTING_S = 10.0


class PgBouncer:
    """A running PgBouncer.

    Attributes:
        folder: Of its configuration; a foreign account must be able to read what lies there.
        port: Where it listens, on 127.0.0.1.
        settings: What its configuration says, from the next start on.
    """

    def __init__(self, server_url: str, folder: Path, account: Account, **settings: Any) -> None:
        self.folder = folder
        self.port = free_port()
        self._account = account
        self.settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            "auth_type": "any",
            "max_client_conn": 500,
            "default_pool_size": 4,
            # A server that was away is tried again soon.
            "server_login_retry": 1,
            **settings,
        }
        server = conninfo_to_dict(server_url)
        wanted = ("host", "port", "user", "password")
        self._server = " ".join(f"{name}={server[name]}" for name in wanted if name in server)
        self._process: subprocess.Popen[str] | None = None

    def write(self, name: str, content: str) -> Path:
        """Put a file into its folder."""
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o644)
        return path

    def start(self) -> None:
        """Start it and wait until it answers."""
        lines = [f"{name} = {value}" for name, value in self.settings.items()]
        lines = ["[databases]", f"* = {self._server}", "[pgbouncer]", *lines]
        path = self.write("pgbouncer.ini", "\n".join(lines))
        is_foreign = self._account.is_foreign
        self._process = subprocess.Popen(
            [_program(), "--quiet", path],
            user=self._account.uid if is_foreign else None,
            group=self._account.gid if is_foreign else None,
            extra_groups=[] if is_foreign else None,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + STARTING_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                pytest.exit(f"PgBouncer does not start: {self._process.communicate()[1]}", 3)
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def url(self, url: str) -> str:
        """Return `url` with this in the place of the server."""
        parts = urlsplit(url)
        netloc = f"{parts.username or 'postgres'}@127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=netloc, query=""))

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return what ``SHOW`` tells on its console."""
        console = f"postgresql://postgres@127.0.0.1:{self.port}/pgbouncer"
        with psycopg.connect(console, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(f"SHOW {what}".encode()).fetchall()

    def queries(self, database: str) -> int:
        """Count the queries that went through it to a database."""
        return sum(
            row["total_query_count"] for row in self.show("STATS") if row["database"] == database
        )


@pytest.fixture(scope="session")
def make_pooler(server_url: str) -> Iterator[Callable[..., PgBouncer]]:
    """``make_pooler(server_url, **settings)``: a PgBouncer that stops with the session."""
    with ExitStack() as stack:

        def make(url: str = server_url, **settings: Any) -> PgBouncer:
            return stack.enter_context(_running(url, **settings))

        yield make


@pytest.fixture(scope="session")
def pooler_of_all(make_pooler: Callable[..., PgBouncer]) -> Iterator[PgBouncer | None]:
    """What every memory connects through, if anything."""
    pooler = make_pooler() if POOLER_DRIVER else None
    yield pooler
    if pooler is not None:
        assert any(row["total_query_count"] > 1 for row in pooler.show("STATS")), "nobody did"


def through(pooler: PgBouncer, url: str) -> str:
    """Return `url` with the pooler in the server's place, by the driver that was asked for."""
    url = pooler.url(url)
    if POOLER_DRIVER and urlsplit(url).scheme == "postgresql":
        return with_driver(url, f"postgresql+{POOLER_DRIVER}")
    return url


@contextmanager
def _running(server_url: str, **settings: Any) -> Iterator[PgBouncer]:
    # It refuses to run as root. Under root the embedded server's socket is its user's alone.
    folder = Path(tempfile.mkdtemp(prefix="llmemory-pgbouncer-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        pooler = PgBouncer(server_url, folder, unprivileged_account(), **settings)
        pooler.start()
        yield pooler
        pooler.stop()
    finally:
        shutil.rmtree(folder)


def _program() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.exit("These tests need PgBouncer: apt-get install pgbouncer", returncode=3)
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
