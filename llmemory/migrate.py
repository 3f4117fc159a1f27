"""Migrating a schema with the Alembic revisions that come with the library."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from sqlalchemy import Column, Connection, MetaData, String, Table, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from llmemory.drivers import sqlstate_of
from llmemory.errors import (
    ConfigurationError,
    ExtensionMissing,
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    ValidationError,
)
from llmemory.models import HNSW_PREFIX, VERSION_TABLE, quoted_identifier, tables_for
from llmemory.turns import Turn

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = [
    "HEAD",
    "check",
    "check_extension",
    "check_server",
    "context_options",
    "downgrade",
    "include_name",
    "prepare_schema",
    "print_sql",
    "ready",
    "revision_of",
    "scripts",
    "upgrade",
]

# The newest revision, which this version needs. Written down because importing Alembic to ask it
# takes longer than importing all else; a test compares the two.
HEAD = "0003"

MINIMUM_POSTGRESQL = 14
MINIMUM_PGVECTOR = (0, 8)

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
_SCHEMA_EXISTS = text("SELECT 1 FROM pg_namespace WHERE nspname = :schema")
_VERSION_TABLE_EXISTS = text(
    "SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    f"WHERE n.nspname = :schema AND c.relname = '{VERSION_TABLE}'"
)
_EXTENSION = text(
    "SELECT e.extversion, n.nspname, n.nspname = ANY (current_schemas(true)) AS visible "
    "FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace "
    "WHERE e.extname = 'vector'"
)


def scripts() -> Path:
    """Return the folder of the revisions: the wheel's, or the clone's if run from there."""
    packaged = Path(__file__).parent / "_alembic"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parent.parent / "alembic"


@cache
def _script_directory() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config(**attributes: Any) -> Config:
    from alembic.config import Config

    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@asynccontextmanager
async def ready() -> AsyncIterator[None]:
    """Prepare for ``upgrade`` without a connection: import Alembic, wait for other upgrades."""
    # In a thread, since it takes a good part of a second.
    await anyio.to_thread.run_sync(import_module, "alembic.command")
    async with _turn.wait():
        yield


def context_options(schema: str) -> dict[str, Any]:
    """Return what the migration context of `schema` is configured with."""

    def only_schema(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name == schema

    return {
        "target_metadata": tables_for(schema).metadata,
        "version_table": VERSION_TABLE,
        "version_table_schema": schema,
        "include_schemas": True,
        "include_name": only_schema,
        "include_object": _is_ours_to_compare,
    }


def _is_ours_to_compare(
    item: object, name: str | None, kind: str, reflected: bool, compared: object
) -> bool:
    # HNSW indexes are made per large owner, outside the revisions.
    return not (kind == "index" and reflected and (name or "").startswith(HNSW_PREFIX))


def include_name(schema: str = "llmemory") -> Callable[[str | None, str, Any], bool]:
    """Return an ``include_name`` hook for an application's own Alembic environment.

    With ``include_schemas=True`` autogenerate would otherwise propose to drop these tables.

    Args:
        schema: The schema to leave alone.
    """

    def leave_alone(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name != schema

    return leave_alone


def upgrade(connection: Connection, schema: str, revision: str = "head") -> None:
    """Bring `schema` to `revision`, within the transaction of `connection`.

    Safe when many processes call it at once: one works, the others wait and find it done.

    Raises:
        ExtensionMissing: pgvector is absent or too old, or may not be created by this role.
        SchemaMissing: The role may not create the schema.
        ConfigurationError: PostgreSQL is older than 14.
        ValidationError: There is no such revision.
    """
    _run("upgrade", revision, connection=connection, schema=schema)


def downgrade(connection: Connection, schema: str, revision: str) -> None:
    """Take `schema` back to `revision`; ``base`` drops every table and its data."""
    _run("downgrade", revision, connection=connection, schema=schema)


def print_sql(schema: str, revision: str = "head") -> None:
    """Print the SQL of an upgrade to `revision`, or of ``from:to``, without a connection."""
    _run("upgrade", revision, sql=True, schema=schema)


def _run(command: str, revision: str, *, sql: bool = False, **attributes: Any) -> None:
    from alembic import command as commands
    from alembic.util.exc import CommandError

    try:
        with _turn.take():
            getattr(commands, command)(_config(**attributes), revision, sql=sql)
    except CommandError as error:
        raise ValidationError(f"{error}.", field="revision") from error


def _renew_turn() -> None:
    global _turn
    _turn = Turn()


# Alembic keeps what it works on in globals: of two commands that overlap, in threads or in tasks of
# one event loop, one would work on the other's connection.
_turn = Turn()
if hasattr(os, "register_at_fork"):
    # A thread of the parent may have had it.
    os.register_at_fork(after_in_child=_renew_turn)


def prepare_schema(connection: Connection, schema: str) -> None:
    """Make sure of the server, the extension and the schema, locking out other migrators."""
    check_server(connection)
    connection.execute(_LOCK, {"name": f"llmemory schema {schema}"})
    if _extension(connection) is None:
        # Schemas migrate side by side, but the extension belongs to the whole database.
        connection.execute(_LOCK, {"name": "llmemory extension"})
        _create_extension(connection, schema)
    check_extension(connection, schema)
    if connection.execute(_SCHEMA_EXISTS, {"schema": schema}).first() is None:
        with _refusals(connection, _schema_refused(schema)):
            connection.execute(CreateSchema(schema, if_not_exists=True))


def _create_extension(connection: Connection, schema: str) -> None:
    if _extension(connection) is not None:
        return
    public = connection.execute(text("SELECT 'public' = ANY (current_schemas(false))")).scalar()
    # Elsewhere it would go into the first schema of the search path, which may be a tenant's.
    place = " SCHEMA public" if public else ""
    with _refusals(connection, _extension_refused(schema)):
        connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS vector{place}"))


@contextmanager
def _refusals(connection: Connection, error: SchemaError) -> Iterator[None]:
    try:
        yield
    except DBAPIError as cause:
        # insufficient_privilege, feature_not_supported, undefined_file
        if sqlstate_of(cause) in {"42501", "0A000", "58P01"}:
            raise error from cause
        raise


def _extension_refused(schema: str) -> ExtensionMissing:
    return ExtensionMissing(
        "pgvector is not installed in this database and this role may not install it. Run once "
        "as a superuser: CREATE EXTENSION vector; (PostgreSQL must have the pgvector package, "
        "0.8 or newer: https://github.com/pgvector/pgvector#installation).",
        schema=schema,
    )


def _schema_refused(schema: str) -> SchemaError:
    return SchemaMissing(
        f"The schema does not exist and this role may not create it. Run as the owner of the "
        f"database: CREATE SCHEMA {quoted_identifier(schema)} AUTHORIZATION name_of_the_role;",
        schema=schema,
    )


def check_server(connection: Connection) -> None:
    """Refuse a PostgreSQL that is too old.

    Raises:
        ConfigurationError: It is older than 14.
    """
    number = connection.execute(text("SELECT current_setting('server_version_num')::int"))
    major = number.scalar_one() // 10000
    if major < MINIMUM_POSTGRESQL:
        raise ConfigurationError(
            f"The server is PostgreSQL {major}; llmemory needs {MINIMUM_POSTGRESQL} or newer."
        )


def check_extension(connection: Connection, schema: str) -> None:
    """Refuse a database without a usable pgvector.

    Raises:
        ExtensionMissing: It is absent, older than 0.8, or outside the search path.
    """
    found = _extension(connection)
    if found is None:
        raise ExtensionMissing(
            "pgvector is not installed in this database. Run `llmemory db upgrade`, which installs "
            "it and makes the tables, or once as a superuser: CREATE EXTENSION vector;",
            schema=schema,
        )
    version, place, visible = found
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_PGVECTOR:
        raise ExtensionMissing(
            f"pgvector {version} is too old; llmemory needs 0.8 or newer. Install the newer "
            "package, then run as the extension's owner: ALTER EXTENSION vector UPDATE;",
            schema=schema,
        )
    if not visible:
        raise ExtensionMissing(
            f'pgvector lies in schema "{place}", outside the search path of this role. Run: ALTER '
            f'ROLE name_of_the_role SET search_path = "$user", public, "{place}";',
            schema=schema,
        )


def _extension(connection: Connection) -> tuple[str, str, bool] | None:
    row = connection.execute(_EXTENSION).first()
    return None if row is None else (row.extversion, row.nspname, row.visible)


def revision_of(connection: Connection, schema: str) -> str | None:
    """Return the revision that `schema` is at, or None if it was never migrated."""
    if connection.execute(_VERSION_TABLE_EXISTS, {"schema": schema}).first() is None:
        return None
    table = Table(VERSION_TABLE, MetaData(), Column("version_num", String), schema=schema)
    return connection.execute(select(table.c.version_num)).scalar_one_or_none()


def check(connection: Connection, schema: str) -> None:
    """Compare `schema` with what the library needs.

    Raises:
        SchemaMissing: It was never migrated.
        SchemaOutOfDate: It is older than the library.
        SchemaTooNew: It is newer than the library.
        ExtensionMissing: pgvector is absent, too old or out of reach.
        ConfigurationError: PostgreSQL is too old.
    """
    check_server(connection)
    check_extension(connection, schema)
    found = revision_of(connection, schema)
    if found == HEAD:
        return
    if found is None:
        raise SchemaMissing(
            f'Schema "{schema}" has no tables yet. Run `llmemory db upgrade --schema {schema}`, '
            "or let initialize() do it with Settings.migrate=True.",
            schema=schema,
        )
    known = {script.revision for script in _script_directory().walk_revisions()}
    if found in known:
        raise SchemaOutOfDate(
            f'Schema "{schema}" is at revision {found}, this version needs {HEAD}. Run '
            f"`llmemory db upgrade --schema {schema}`.",
            schema=schema,
            found=found,
            expected=HEAD,
        )
    raise SchemaTooNew(
        f'Schema "{schema}" is at revision {found}, which this version does not know (it needs '
        f"{HEAD}). Install a newer version of llmemory.",
        schema=schema,
        found=found,
        expected=HEAD,
    )
