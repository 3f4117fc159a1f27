"""Row level security: PostgreSQL itself keeps the owners' rows apart.

``enable`` puts policies on every table that has owners. A transaction then sees the rows of the
owner that it has named with ``SET LOCAL llmemory.owner_id``, and none before it has named one.
Memories do so with ``Settings.row_level_security``; sessions of your own execute ``owner_setting``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, TextClause

from llmemory.errors import ConfigurationError
from llmemory.models import DEFAULT_SCHEMA, tables_for
from llmemory.settings import Settings
from llmemory.statements import row_level_security as sql
from llmemory.types import Identifier
from llmemory.validation.values import checked_identifier

__all__ = [
    "check_sees_all",
    "disable",
    "enable",
    "is_active",
    "owner_setting",
    "sees_all",
    "warnings",
]


def enable(
    connection: Connection, schema: str = DEFAULT_SCHEMA, *, all_owners_roles: Sequence[str] = ()
) -> None:
    """Put forced policies on every table of `schema` that has owners.

    Called again, it puts them on new tables too, and `all_owners_roles` in place of the former.

    Args:
        connection: In a transaction, of the role that owns the tables.
        schema: Where the tables are.
        all_owners_roles: Roles that see all rows: those of workers, of ``maintain`` and of
            migrations. Never the one that an application serves users with.
    """
    for table in sql.owned_tables(tables_for(schema)):
        for statement in sql.enable(table, list(dict.fromkeys(all_owners_roles))):
            connection.execute(statement)


def disable(connection: Connection, schema: str = DEFAULT_SCHEMA) -> None:
    """Take the policies off the tables of `schema`: each role sees the rows of all owners."""
    for table in sql.owned_tables(tables_for(schema)):
        for statement in sql.disable(table):
            connection.execute(statement)


def owner_setting(owner_id: Identifier) -> TextClause:
    """Return a statement after which a transaction of your own sees this owner's rows.

    Any session or connection executes it, sync or async, in the transaction that it is for.

    Raises:
        ValidationError: It is no owner's id.
    """
    return sql.owner_setting(checked_identifier(owner_id, "owner_id", Settings()))


def sees_all(connection: Connection, schema: str) -> bool:
    """Return whether the role of `connection` sees the rows of all owners."""
    return bool(connection.execute(sql.SEES_ALL, _named(schema)).scalar_one())


def check_sees_all(connection: Connection, schema: str) -> None:
    """Refuse work for all owners to a role that would find none of their rows.

    Raises:
        ConfigurationError: Row level security hides the owners' rows from the role.
    """
    if not sees_all(connection, schema):
        raise ConfigurationError(
            f'Row level security hides the rows of schema "{schema}" from this role, and this '
            "call is about all owners. Name one owner, or connect as a role that was given to "
            "`llmemory db enable-rls --all-owners-role`."
        )


def is_active(connection: Connection, schema: str) -> bool:
    """Return whether policies on a table of `schema` bind the role of `connection`."""
    return any(table.is_active for table in connection.execute(sql.TABLES, _named(schema)))


def warnings(connection: Connection, schema: str, *, is_expected: bool) -> list[str]:
    """Return what keeps row level security from holding, for this role and these tables.

    Args:
        connection: Of the role that is asked about.
        schema: Where the tables are.
        is_expected: Whether a memory names its owners. If not, and if no table has policies, there
            is nothing to warn of.
    """
    found = connection.execute(sql.TABLES, _named(schema)).all()
    if not is_expected and not any(table.is_enabled for table in found):
        return []
    problems = []
    role = connection.execute(sql.ROLE).one()
    if role.is_superuser or role.bypasses:
        kind = "a superuser" if role.is_superuser else "BYPASSRLS"
        problems.append(
            f'The role "{role.name}" is {kind}, which row level security does not bind. Connect '
            "as a role that is neither a superuser nor BYPASSRLS."
        )
    if unheld := [table.name for table in found if not table.holds]:
        problems.append(
            f"Row level security is not enabled and forced on {', '.join(unheld)}. Run "
            f"`llmemory db enable-rls --schema {schema}`."
        )
    if not is_expected and any(table.is_active for table in found):
        problems.append(
            "Row level security hides rows from this memory, which does not name its owners. Use "
            "Settings(row_level_security=True)."
        )
    return problems


def _named(schema: str) -> dict[str, object]:
    tables = sql.owned_tables(tables_for(schema))
    return {"schema_name": schema, "table_names": [table.name for table in tables]}
