"""Migrating a schema with the Alembic revisions that come with the library."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from sqlalchemy import Column, Connection, MetaData, String, Table, select, text

from llmemory.concurrency.turns import Turn
from llmemory.errors import (
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    ValidationError,
)
from llmemory.models import DEFAULT_SCHEMA, HNSW_PREFIX, VERSION_TABLE, tables_for
from llmemory.schema.prerequisites import (
    check_extension,
    check_server,
    check_undistributed,
    damage_named,
)

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = [
    "HEAD",
    "check",
    "check_known",
    "context_options",
    "downgrade",
    "include_name",
    "print_sql",
    "ready",
    "revision_of",
    "schemas_of",
    "script_directory",
    "scripts",
    "upgrade",
]

# The newest revision, which this version needs. Written down because importing Alembic to ask it
# takes longer than importing all else; a test compares the two.
HEAD = "0008"

_VERSION_TABLE_EXISTS = text(
    "SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    f"WHERE n.nspname = :schema AND c.relname = '{VERSION_TABLE}'"
)

_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :milliseconds, true)")
_SCHEMAS = text(
    "SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    f"WHERE c.relname = '{VERSION_TABLE}' AND c.relkind = 'r' ORDER BY n.nspname"
)


def scripts() -> Path:
    """Return the folder of the revisions: the wheel's, or the clone's if run from there."""
    packaged = Path(__file__).parents[1] / "_alembic"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[2] / "alembic"


@cache
def script_directory() -> ScriptDirectory:
    """Return the revisions as Alembic sees them."""
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


def include_name(*schemas: str) -> Callable[[str | None, str, Any], bool]:
    """Return an ``include_name`` hook for an application's own Alembic environment.

    With ``include_schemas=True`` autogenerate would otherwise propose to drop these tables.

    Args:
        schemas: The schemas to leave alone; ``llmemory`` where none is given. ``schemas_of`` finds
            those of a database with many.
    """
    left_alone = schemas or (DEFAULT_SCHEMA,)

    def hook(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "schema" or name not in left_alone

    return hook


def upgrade(
    connection: Connection,
    schema: str,
    revision: str = "head",
    *,
    lock_timeout_s: float | None = None,
) -> None:
    """Bring `schema` to `revision`, within the transaction of `connection`.

    Safe when many processes call it at once: one works, the others wait and find it done.

    Args:
        connection: In a transaction, which commits or rolls back all of it.
        schema: Made if it does not exist.
        revision: The revision to go to.
        lock_timeout_s: Seconds to wait for each lock that others hold; None waits for ever.

    Raises:
        SchemaTooNew: The schema is at a revision that this version does not know.
        ExtensionMissing: pgvector is absent or too old, or may not be created by this role.
        SchemaMissing: The role may not create the schema.
        SchemaError: Something in the schema is not as its revision left it.
        ConfigurationError: PostgreSQL is older than 14.
        ValidationError: There is no such revision.
    """
    if lock_timeout_s is not None:
        milliseconds = str(max(1, round(lock_timeout_s * 1000)))
        connection.execute(_LOCK_TIMEOUT, {"milliseconds": milliseconds})
    found = revision_of(connection, schema)
    if found is not None:
        check_known(schema, found)
    _run("upgrade", revision, connection=connection, schema=schema)


def downgrade(connection: Connection, schema: str, revision: str) -> None:
    """Take `schema` back to `revision`; ``base`` drops every table and its data.

    Raises:
        ConfigurationError: The tables are distributed.
        ValidationError: There is no such revision.
    """
    check_undistributed(connection, schema)
    _run("downgrade", revision, connection=connection, schema=schema)


def print_sql(schema: str, revision: str = "head") -> None:
    """Print the SQL of an upgrade to `revision`, or of ``from:to``, without a connection."""
    _run("upgrade", revision, sql=True, schema=schema)


def _run(command: str, revision: str, *, sql: bool = False, **attributes: Any) -> None:
    from alembic import command as commands
    from alembic.util.exc import CommandError

    try:
        with _turn.take(), damage_named(attributes["schema"]):
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


def revision_of(connection: Connection, schema: str) -> str | None:
    """Return the revision that `schema` is at, or None if it was never migrated.

    Raises:
        SchemaError: Its version table is not as migrations leave it.
    """
    if connection.execute(_VERSION_TABLE_EXISTS, {"schema": schema}).first() is None:
        return None
    table = Table(VERSION_TABLE, MetaData(), Column("version_num", String), schema=schema)
    with damage_named(schema):
        found = connection.execute(select(table.c.version_num)).scalars().all()
    if len(found) > 1:
        raise SchemaError(
            f'Schema "{schema}" is at several revisions at once: {", ".join(sorted(found))}. Leave '
            f"in its table {VERSION_TABLE} the one row that is true.",
            schema=schema,
        )
    return found[0] if found else None


def schemas_of(connection: Connection) -> list[str]:
    """Return the schemas of the database that hold the library's tables, in order of name."""
    schemas = list(connection.execute(_SCHEMAS).scalars())
    for schema in schemas:
        # Whoever compares them shall not be warned of a type that SQLAlchemy does not know.
        tables_for(schema)
    return schemas


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
            f'Schema "{schema}" has no tables yet. Run `llmemory db upgrade --schema '
            f"{quote(schema)}`, or let initialize() do it with Settings.migrate=True.",
            schema=schema,
        )
    check_known(schema, found)
    raise SchemaOutOfDate(
        f'Schema "{schema}" is at revision {found}, this version needs {HEAD}. Run '
        f"`llmemory db upgrade --schema {quote(schema)}`.",
        schema=schema,
        found=found,
        expected=HEAD,
    )


def check_known(schema: str, found: str) -> None:
    """Refuse a schema at a revision of a newer version.

    Raises:
        SchemaTooNew: This version does not know the revision `found`.
    """
    if found not in {script.revision for script in script_directory().walk_revisions()}:
        raise SchemaTooNew(
            f'Schema "{schema}" is at revision {found}, which this version does not know (it '
            f"needs {HEAD}). Install a newer version of llmemory.",
            schema=schema,
            found=found,
            expected=HEAD,
        )
