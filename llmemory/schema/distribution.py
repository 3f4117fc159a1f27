"""Tables that are spread over several machines, by the extension Citus.

``distribute`` puts each owner's rows together on one of the nodes, where every statement about the
owner then runs as a whole; or, by schema, all rows of a tenant's schema. Everything else stays as
it is: models, statements and revisions are the same for plain tables and distributed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import Literal, TypeAlias

from sqlalchemy import Connection, TextClause

from llmemory.errors import ConfigurationError, ValidationError
from llmemory.models import DEFAULT_SCHEMA, quoted_identifier, tables_for
from llmemory.schema import migrate
from llmemory.schema.prerequisites import distributed_tables, has_citus
from llmemory.schema.row_level_security import is_active
from llmemory.statements import distribution as sql
from llmemory.statements.row_level_security import ROLE

__all__ = ["By", "distribute", "distribute_new_tables", "undistribute", "warnings"]

By: TypeAlias = Literal["owner", "schema"]
"""What is kept together on one node: the rows of an owner, or of a whole schema."""


def distribute(
    connection: Connection, schema: str = DEFAULT_SCHEMA, *, by: By = "owner"
) -> list[str]:
    """Distribute the tables of `schema`; those that are distributed already stay as they are.

    Rows move within the transaction, and their indexes are built anew. Who reads or writes the
    tables meanwhile waits for its end.

    Args:
        connection: In a transaction on the coordinator, of the role that owns the tables.
        schema: At the newest revision.
        by: Whose rows stay together. A schema that is distributed in one way is not in the other.

    Returns:
        The tables that were distributed, in alphabetical order; none if all were.

    Raises:
        ConfigurationError: The database has no Citus, the schema is distributed in the other way,
            or row level security binds the role.
        SchemaMissing: There are no tables yet.
        SchemaOutOfDate: They are at an older revision.
        ValidationError: `by` is neither "owner" nor "schema".
    """
    if by not in ("owner", "schema"):
        raise ValidationError('by must be "owner" or "schema".', field="by")
    _check_citus(connection)
    migrate.check(connection, schema)
    before = distributed_tables(connection, schema)
    if before and _is_by_owner(before) != (by == "owner"):
        raise ConfigurationError(
            f'Schema "{schema}" is distributed by {"schema" if by == "owner" else "owner"}. '
            "Undistribute it first."
        )
    _check_unguarded(connection, schema)
    return _distributed(connection, schema, by, before)


def distribute_new_tables(connection: Connection, schema: str) -> list[str]:
    """Distribute the tables that a revision has just made, if the others are distributed by owner.

    For the end of a revision that makes tables: Citus distributes those of a schema that is
    distributed as a whole by itself.

    Returns:
        The tables that were distributed.
    """
    before = distributed_tables(connection, schema)
    return _distributed(connection, schema, "owner", before) if _is_by_owner(before) else []


def undistribute(connection: Connection, schema: str = DEFAULT_SCHEMA) -> list[str]:
    """Make plain tables of the distributed ones of `schema`, on the coordinator.

    Rows move as they do in ``distribute``: the coordinator must have room for all of them.

    Args:
        connection: In a transaction on the coordinator, of the role that owns the tables.
        schema: At any revision.

    Returns:
        The tables that were distributed, in alphabetical order; none if all were plain.

    Raises:
        ConfigurationError: The database has no Citus, or row level security binds the role.
    """
    _check_citus(connection)
    before = distributed_tables(connection, schema)
    if not before:
        return []
    _check_unguarded(connection, schema)
    tables = tables_for(schema)
    by_owner = _is_by_owner(before)
    _run(
        connection,
        sql.by_owner_undone(tables, before) if by_owner else [sql.by_schema_undone(tables)],
    )
    return sorted(before.keys() - distributed_tables(connection, schema).keys())


def warnings(connection: Connection, schema: str) -> list[str]:
    """Return what keeps distributed tables from working as plain ones do, for this role."""
    if not distributed_tables(connection, schema):
        return []
    if connection.execute(sql.PROPAGATED).scalar() == "local":
        return []
    role = connection.execute(ROLE).one().name
    return [
        "The nodes are not told of a transaction's settings, which row level security and HNSW "
        f"indexes need. Run: ALTER ROLE {quoted_identifier(role)} SET "
        "citus.propagate_set_commands = 'local'; and connect anew."
    ]


def _distributed(connection: Connection, schema: str, by: By, before: dict[str, bool]) -> list[str]:
    tables = tables_for(schema)
    if by == "owner":
        _run(connection, sql.by_owner(tables, before))
    elif not before:
        _run(connection, [sql.by_schema(tables)])
    done = sorted(distributed_tables(connection, schema).keys() - before.keys())
    # Also those that a revision has made since.
    if before or done:
        _run(connection, sql.distributed_functions(tables))
    return done


def _run(connection: Connection, statements: Iterable[TextClause]) -> None:
    for statement in statements:
        connection.execute(statement)


def _is_by_owner(distributed: dict[str, bool]) -> bool:
    # Not any table will do: the one of spaces is a copy on each node then, and not by owner.
    return distributed.get("documents", False)


def _check_citus(connection: Connection) -> None:
    if not has_citus(connection):
        raise ConfigurationError(
            "This database does not have the extension Citus. Put citus first into "
            "shared_preload_libraries of every node and restart them, then run in this database "
            "of every node as a superuser: CREATE EXTENSION citus; and on the coordinator, for "
            "each worker: SELECT citus_add_node('host', 5432);"
        )


def _check_unguarded(connection: Connection, schema: str) -> None:
    if is_active(connection, schema):
        raise ConfigurationError(
            f'Row level security is on in schema "{schema}", and PostgreSQL does not let rows be '
            f"copied into such tables. Run `llmemory db disable-rls --schema {quote(schema)}` "
            "first, and enable it again afterwards."
        )
