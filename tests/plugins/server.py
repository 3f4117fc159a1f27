"""The PostgreSQL server of a test run, and databases on it that live for one test.

The server is the one that LLMEMORY_TEST_DATABASE_URL names, as a superuser with pgvector 0.8
available, or else an embedded one. No test is skipped for want of a server.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from llmemory.schema import migrate

SERVER_VARIABLE = "LLMEMORY_TEST_DATABASE_URL"
EMPTY = "template0"
HOLD_SERVER = """
import sys
from pathlib import Path
from llmemory import embedded

fast_but_unsafe = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
server = embedded.start(Path(sys.argv[1]), settings=fast_but_unsafe)
print(server.url, flush=True)
sys.stdin.read()
server.release()
"""


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own LLMEMORY_ variables from every test."""
    for name in list(os.environ):
        if name.startswith("LLMEMORY_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_itself() -> Iterator[str]:
    """A superuser's URL of the server, with the scheme ``postgresql``."""
    given = os.environ.get(SERVER_VARIABLE)
    with _server_given(given) if given else _server_embedded() as url:
        yield url


@contextmanager
def _server_given(url: str) -> Iterator[str]:
    url = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.Error as error:
        pytest.exit(f"{SERVER_VARIABLE} names a server that does not answer: {error}", returncode=3)
    yield url


@contextmanager
def _server_embedded() -> Iterator[str]:
    # Under root the server runs as another user, who must be able to pass; TMPDIR may be closed.
    folder = Path(tempfile.mkdtemp(prefix="llmemory-tests-", dir="/tmp"))
    folder.chmod(0o755)
    # A process of its own holds the server: tests of the embedded server release all of theirs.
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_SERVER, folder / "postgres"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    try:
        url = holder.stdout.readline().strip()
        if not url:
            pytest.exit("The embedded server does not start; see above.", returncode=3)
        yield url
    finally:
        holder.communicate()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(server_itself: str) -> Iterator[str]:
    """Name of a migrated database, made once and cloned for every test."""
    # Past a pooler, whose connections would forbid to clone it.
    with fresh_database(server_itself) as url:
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
        )
        with engine.begin() as connection:
            migrate.upgrade(connection, "llmemory")
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def make_database(server_url: str) -> Iterator[Callable[[str], str]]:
    """Clone databases, and drop them after all that depends on this fixture has let go of them."""
    with ExitStack() as stack:
        yield lambda template: stack.enter_context(fresh_database(server_url, template))


@pytest.fixture
def empty_database_url(make_database: Callable[[str], str]) -> str:
    """A fresh database, without schema and without extension."""
    return make_database(EMPTY)


@pytest.fixture
def database_url(make_database: Callable[[str], str], template: str) -> str:
    """A fresh database whose schema ``llmemory`` is migrated and empty."""
    return make_database(template)


@pytest.fixture(params=["postgresql", "postgresql+psycopg"], ids=["asyncpg", "psycopg"])
def driver_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """``database_url``, for one driver after the other."""
    return with_driver(database_url, request.param)


@contextmanager
def fresh_database(server_url: str, template: str = EMPTY) -> Iterator[str]:
    """Create a database of a new name, give its URL, drop it."""
    name = f"llmemory_test_{secrets.token_hex(6)}"
    execute(
        server_url,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template)
        ),
    )
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        execute(
            server_url,
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)),
        )


def execute(url: str, *statements: sql.SQL | sql.Composed) -> None:
    """Run statements, each in its own transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def with_driver(url: str, scheme: str) -> str:
    """Return `url` with another scheme, which is what chooses the driver."""
    return f"{scheme}://{url.partition('://')[2]}"
