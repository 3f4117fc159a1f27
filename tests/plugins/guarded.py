"""Databases with row level security, and roles that it binds."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, Settings
from llmemory.schema import row_level_security
from plugins.memories import MakeMemory
from plugins.server import execute, with_driver

__all__ = ["GUARDED", "HOSTILE", "Guarded", "fresh_roles", "guard"]

GUARDED = Settings(row_level_security=True)
HOSTILE = [
    "o'reilly",
    "x' OR 'a'='a",
    "back\\slash",
    "\\'; DROP",
    "%s %(a)s",
    ":name",
    "''",
    "日本",
]


@dataclass(frozen=True)
class Guarded:
    """URLs of one database by role.

    Attributes:
        superuser: Whom no policy binds.
        application: Sees the rows of the owner that a transaction has named.
        upkeep: Owns the tables and sees all rows, by a policy of its own.
    """

    superuser: str
    application: str
    upkeep: str


@pytest.fixture(scope="session")
def roles(server_url: str) -> Iterator[dict[str, str]]:
    """Two roles, for all databases of the server."""
    with fresh_roles(server_url) as made:
        yield made


@contextmanager
def fresh_roles(server_url: str) -> Iterator[dict[str, str]]:
    """Create two roles without privileges, give ``name:password`` of each, drop them.

    In the database of `server_url` they may own something then, in no other.
    """
    made = {f"llmemory_{kind}_{secrets.token_hex(4)}": kind for kind in ("application", "upkeep")}
    password = secrets.token_hex(8)
    for name in made:
        login = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        execute(server_url, login.format(sql.Identifier(name), sql.Literal(password)))
    try:
        yield {kind: f"{name}:{password}" for name, kind in made.items()}
    finally:
        for name in made:
            for statement in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
                execute(server_url, sql.SQL(statement).format(sql.Identifier(name)))


@pytest.fixture
def guarded(make_database: Callable[[str], str], template: str, roles: dict[str, str]) -> Guarded:
    """A migrated database with row level security."""
    return guard(make_database(template), roles)


@pytest.fixture(params=["postgresql", "postgresql+psycopg"], ids=["asyncpg", "psycopg"])
def served(
    request: pytest.FixtureRequest, guarded: Guarded, make_memory: MakeMemory
) -> AsyncMemory:
    """A memory of the application's role, for one driver after the other."""
    return make_memory(with_driver(guarded.application, request.param), settings=GUARDED)


@pytest.fixture
def upkeep(guarded: Guarded, make_memory: MakeMemory) -> AsyncMemory:
    """A memory of the role that sees all rows."""
    return make_memory(guarded.upkeep, settings=GUARDED)


def guard(url: str, roles: dict[str, str], schema: str = "llmemory") -> Guarded:
    """Have one of the roles own the tables, and the other one be served by them."""
    upkeep, application = (roles[kind].partition(":")[0] for kind in ("upkeep", "application"))
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)
        ).fetchall()
        for (name,) in names:
            connection.execute(
                sql.SQL("ALTER TABLE {} OWNER TO {}").format(
                    sql.Identifier(schema, name), sql.Identifier(upkeep)
                )
            )
        for statement in (
            "GRANT USAGE ON SCHEMA {schema} TO {upkeep}, {application}",
            "GRANT CREATE ON SCHEMA {schema} TO {upkeep}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} "
            "TO {application}",
        ):
            connection.execute(
                sql.SQL(statement).format(
                    schema=sql.Identifier(schema),
                    upkeep=sql.Identifier(upkeep),
                    application=sql.Identifier(application),
                )
            )
    with engine.begin() as owner:
        row_level_security.enable(owner, schema, all_owners_roles=[upkeep])
    return Guarded(url, _login(url, roles["application"]), _login(url, roles["upkeep"]))


def _login(url: str, login: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}"))
