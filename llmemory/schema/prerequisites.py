"""What a migration needs of the server: its version, pgvector, and a schema to work in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from llmemory.database.driver_errors import server_message, sqlstate_of
from llmemory.errors import ConfigurationError, ExtensionMissing, SchemaError, SchemaMissing
from llmemory.models import quoted_identifier, tables_for
from llmemory.schema.row_level_security import sees_all
from llmemory.statements.distribution import DISTRIBUTED_TABLES, IS_INSTALLED, LOCAL_SCHEMA

__all__ = [
    "check_extension",
    "check_server",
    "check_undistributed",
    "damage_named",
    "distributed_tables",
    "has_citus",
    "prepare_schema",
]

MINIMUM_POSTGRESQL = 14
MINIMUM_PGVECTOR = (0, 8)

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
# A revision that changes rows must see all of them, or fail.
_FAIL_OVER_HIDDEN_ROWS = text("SET LOCAL row_security = off")
_SCHEMA_EXISTS = text("SELECT 1 FROM pg_namespace WHERE nspname = :schema")
_EXTENSION = text(
    "SELECT e.extversion, n.nspname, n.nspname = ANY (current_schemas(true)) AS visible "
    "FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace "
    "WHERE e.extname = 'vector'"
)


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
        connection.execute(LOCAL_SCHEMA)
        with _refusals(connection, _schema_refused(schema)):
            connection.execute(CreateSchema(schema, if_not_exists=True))
    if not sees_all(connection, schema):
        connection.execute(_FAIL_OVER_HIDDEN_ROWS)


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


@contextmanager
def damage_named(schema: str) -> Iterator[None]:
    """Say what a migration finds missing or in its way, which running it again would not mend."""
    try:
        yield
    except DBAPIError as error:
        state = sqlstate_of(error) or ""
        # Undefined, duplicate or of the wrong kind; not insufficient_privilege. Or depended on.
        if (state.startswith("42") and state != "42501") or state == "2BP01":
            raise SchemaError(
                f'Schema "{schema}" is not as its revision left it. PostgreSQL says: '
                f"{server_message(error)}. Put it back as it was, or restore it from a backup, and "
                "run this again.",
                schema=schema,
            ) from error
        raise


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


def has_citus(connection: Connection) -> bool:
    """Return whether the database has the extension Citus."""
    return bool(connection.execute(IS_INSTALLED).scalar_one())


def distributed_tables(connection: Connection, schema: str) -> dict[str, bool]:
    """Return which tables of `schema` Citus has distributed, and whether by their owners."""
    if not has_citus(connection):
        return {}
    names = [table.name for table in tables_for(schema).metadata.sorted_tables]
    values = {"schema_name": schema, "table_names": names}
    return {row.name: row.is_by_owner for row in connection.execute(DISTRIBUTED_TABLES, values)}


def check_undistributed(connection: Connection, schema: str) -> None:
    """Refuse to take distributed tables back to an older revision.

    Raises:
        ConfigurationError: Citus has distributed them.
    """
    if distributed_tables(connection, schema):
        raise ConfigurationError(
            f'The tables of schema "{schema}" are distributed, and Citus refuses what older '
            f"revisions do to them. Run `llmemory db undistribute --schema {quote(schema)}`, "
            "downgrade, and distribute them again."
        )


def _extension(connection: Connection) -> tuple[str, str, bool] | None:
    row = connection.execute(_EXTENSION).first()
    return None if row is None else (row.extversion, row.nspname, row.visible)
