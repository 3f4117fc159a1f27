"""PgBouncer in transaction mode, before the server of the test run or before another one.

With LLMEMORY_TEST_POOLER=asyncpg, psycopg or either, it stands before every database of the tests,
and the library is told so. All go by that driver, or each test by one of them. Tests marked
``direct`` stay out.
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
from zlib import crc32

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import Dialect, Engine, Pool, event

from llmemory import Settings
from llmemory.database import drivers
from llmemory.embedded.account import Account, unprivileged_account
from llmemory.settings import _EnvironmentSettings

# Taken before a fixture hides what begins with LLMEMORY_.
POOLER = os.environ.get("LLMEMORY_TEST_POOLER", "")
STARTING_S = 10.0
# What parameters of tests call them.
DRIVERS = {
    "postgresql": "asyncpg",
    "postgresql+psycopg": "psycopg",
    "asyncpg": "asyncpg",
    "psycopg": "psycopg",
}
UNPREPARED: dict[str, dict[str, Any]] = {
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    },
    "psycopg": {"prepare_threshold": None},
}


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
        server = conninfo_to_dict(server_url)
        wanted = ("host", "port")
        self._server = " ".join(f"{name}={server[name]}" for name in wanted if name in server)
        self._user = str(server.get("user", "postgres"))
        self._users = f'"{self._user}" "{server.get("password", "")}"'
        self.settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            # Everybody logs in to the server as who they are, and it says who exists.
            "auth_type": "trust",
            "auth_file": folder / "users",
            "auth_user": self._user,
            "admin_users": self._user,
            "max_client_conn": 500,
            "default_pool_size": 4,
            # A server that was away is tried again soon.
            "server_login_retry": 1,
            **settings,
        }
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
        if not (self.folder / "users").exists():
            self.write("users", self._users)
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
        login = parts.netloc.rpartition("@")[0] or self._user
        netloc = f"{login}@127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=netloc, query=""))

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return what ``SHOW`` tells on its console."""
        console = f"postgresql://{self._user}@127.0.0.1:{self.port}/pgbouncer"
        with psycopg.connect(console, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(f"SHOW {what}".encode()).fetchall()

    def queries(self, database: str) -> int:
        """Count the queries that went through it to a database."""
        return sum(
            row["total_query_count"] for row in self.show("STATS") if row["database"] == database
        )


@pytest.fixture(scope="session")
def make_pooler(server_itself: str) -> Iterator[Callable[..., PgBouncer]]:
    """``make_pooler(server_url, **settings)``: a PgBouncer that stops with the session."""
    with ExitStack() as stack:

        def make(url: str = server_itself, **settings: Any) -> PgBouncer:
            return stack.enter_context(_running(url, **settings))

        yield make


@pytest.fixture(scope="session")
def server_url(server_itself: str, make_pooler: Callable[..., PgBouncer]) -> str:
    """A superuser's URL of the server, or of the pooler that all tests are to go through."""
    return make_pooler().url(server_itself) if POOLER else server_itself


@pytest.fixture(autouse=True)
def told_of_the_pooler(
    request: pytest.FixtureRequest,
    no_settings_from_outside: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tell other processes of the pooler, and take the test's driver where none is named."""
    if POOLER:
        monkeypatch.setenv("LLMEMORY_TRANSACTION_POOLER", "true")
        monkeypatch.setitem(drivers._DRIVERS, "postgresql", _driver(request.node))


def _take_the_pooler_for_granted() -> None:
    """Tell the library of the pooler, and engines made by tests not to prepare statements."""
    for settings in (Settings, _EnvironmentSettings):
        settings.model_fields["transaction_pooler"].default = True
        settings.model_rebuild(force=True)

    event.listen(Engine, "do_connect", _prepare_nothing)
    event.listen(Pool, "connect", _prepare_nothing_on)


def _prepare_nothing(
    dialect: Dialect, record: object, positional: object, named: dict[str, Any]
) -> None:
    # The library's own engines name the server by other means, and must know for themselves.
    if "host" in named:
        named |= UNPREPARED[dialect.driver]


def _prepare_nothing_on(connection: Any, record: object) -> None:
    # What a creator of the test's own has made, which the event before does not see.
    driver = getattr(connection, "driver_connection", connection)
    if (
        isinstance(driver, psycopg.BaseConnection)
        and driver.info.get_parameters().get("application_name") != "llmemory"
    ):
        driver.prepare_threshold = None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that need a session of their own, and those of the other driver."""
    if POOLER:
        left_out = [item for item in items if not _goes_through(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _goes_through(item: pytest.Item) -> bool:
    if item.get_closest_marker("direct"):
        return False
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = {DRIVERS[text] for text in parameters if isinstance(text, str) and text in DRIVERS}
    return named <= {_driver(item)}


def _driver(item: pytest.Item) -> str:
    if POOLER != "either":
        return POOLER
    function = item.nodeid.partition("[")[0]
    return sorted(UNPREPARED)[crc32(function.encode()) % 2]


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


# At once: other modules make settings as they are imported.
if POOLER:
    _take_the_pooler_for_granted()
