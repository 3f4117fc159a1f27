"""Databases to migrate: connections to them, what they hold, and roles that own them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from plugins.server import execute, fresh_database
from psycopg import sql
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

DRIVERS = pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])

TABLES = {
    "chunks",
    "documents",
    "embedding_jobs",
    "embedding_spaces",
    "embeddings",
    "lexical_statistics",
    "llmemory_version",
}


@contextmanager
def transaction(url: str) -> Iterator[Connection]:
    """Give a connection of psycopg in a transaction, committed at the end."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.begin() as connection:
        yield connection


def tables_in(url: str, schema: str = "llmemory") -> set[str]:
    return names(url, "SELECT tablename FROM pg_tables WHERE schemaname = %s", schema)


def functions_in(url: str, schema: str = "llmemory") -> set[str]:
    return names(
        url,
        "SELECT proname FROM pg_proc WHERE pronamespace = quote_ident(%s)::regnamespace",
        schema,
    )


def schema_exists(url: str, schema: str) -> bool:
    return bool(names(url, "SELECT nspname FROM pg_namespace WHERE nspname = %s", schema))


def names(url: str, query: str, parameter: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute(query, [parameter])}


@contextmanager
def database_of_role(server_url: str, *, extension: bool, may_create: bool) -> Iterator[str]:
    """Give a fresh database's URL for a role that is no superuser.

    Args:
        server_url: A superuser's URL of the server.
        extension: Whether pgvector is installed in the database.
        may_create: Whether the role may create schemas in it.
    """
    name = f"llmemory_test_{secrets.token_hex(6)}"
    password = secrets.token_hex(6)
    role = sql.Identifier(name)
    execute(
        server_url, sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password))
    )
    try:
        with fresh_database(server_url) as url:
            if extension:
                execute(url, sql.SQL("CREATE EXTENSION vector"))
            if may_create:
                database = sql.Identifier(urlsplit(url).path.removeprefix("/"))
                execute(url, sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
            parts = urlsplit(url)
            place = parts.netloc.rpartition("@")[2]
            yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{place}"))
    finally:
        execute(server_url, sql.SQL("DROP ROLE {}").format(role))


def as_superuser(url: str, server_url: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=urlsplit(url).path))
