"""Statements that put row level security on the tables that have owners, and look at it.

Policies compare ``owner_id`` with a setting of the transaction; without it they let no row through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Insert, Table, TextClause, insert, text

from llmemory.constructs import quoted_identifier, quoted_literal
from llmemory.models import Tables

__all__ = [
    "OWNER_SETTING",
    "ROLE",
    "SEES_ALL",
    "TABLES",
    "Staging",
    "disable",
    "enable",
    "insert_values",
    "owned_tables",
    "owner_setting",
    "staging",
]

OWNER_SETTING = "llmemory.owner_id"
OWNER_POLICY = "llmemory_owner"
ALL_OWNERS_POLICY = "llmemory_all_owners"

# A setting that was local to a transaction is empty after it, not missing.
_IS_OWNER = f"owner_id = nullif(current_setting('{OWNER_SETTING}', true), '')"

ROLE = text(
    "SELECT rolname AS name, rolsuper AS is_superuser, rolbypassrls AS bypasses "
    "FROM pg_catalog.pg_roles WHERE rolname = current_user"
)

_NAMED = (
    "FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema_name AND c.relname = ANY (:table_names)"
)

TABLES = text(
    "SELECT c.relname AS name, c.relrowsecurity AS is_enabled, "
    "row_security_active(c.oid) AS is_active, "
    "c.relrowsecurity AND c.relforcerowsecurity AND EXISTS ("
    "SELECT FROM pg_catalog.pg_policy AS p "
    f"WHERE p.polrelid = c.oid AND p.polname = '{OWNER_POLICY}') AS holds {_NAMED} ORDER BY 1"
)
"""Whether row level security is enabled, binds this role, and binds every role but superusers."""

SEES_ALL = text(
    f"SELECT NOT EXISTS (SELECT {_NAMED} AND row_security_active(c.oid) AND NOT EXISTS ("
    "SELECT FROM pg_catalog.pg_policy AS p CROSS JOIN unnest(p.polroles) AS role_id "
    f"WHERE p.polrelid = c.oid AND p.polname = '{ALL_OWNERS_POLICY}' "
    "AND pg_has_role(role_id, 'USAGE')))"
)
"""Whether this role reads the rows of all owners."""


def owned_tables(tables: Tables) -> list[Table]:
    """Return the tables whose rows belong to owners."""
    return [table for table in tables.metadata.sorted_tables if "owner_id" in table.columns]


def enable(table: Table, roles: Sequence[str]) -> Iterator[TextClause]:
    """Yield what enables row level security on `table`, whether it is on or not.

    Args:
        table: One that has owners.
        roles: Roles that work for all owners.
    """
    yield from _dropped_policies(table)
    yield _alter(table, "ENABLE ROW LEVEL SECURITY")
    yield _alter(table, "FORCE ROW LEVEL SECURITY")
    yield _policy(OWNER_POLICY, table, f"USING ({_IS_OWNER}) WITH CHECK ({_IS_OWNER})")
    if roles:
        to = ", ".join(map(quoted_identifier, roles))
        yield _policy(ALL_OWNERS_POLICY, table, f"TO {to} USING (true) WITH CHECK (true)")


def disable(table: Table) -> Iterator[TextClause]:
    """Yield what takes row level security off `table`."""
    yield from _dropped_policies(table)
    yield _alter(table, "NO FORCE ROW LEVEL SECURITY")
    yield _alter(table, "DISABLE ROW LEVEL SECURITY")


def _dropped_policies(table: Table) -> Iterator[TextClause]:
    for name in (OWNER_POLICY, ALL_OWNERS_POLICY):
        yield _text(f"DROP POLICY IF EXISTS {name} ON {_name(table)}")


def _policy(name: str, table: Table, terms: str) -> TextClause:
    return _text(f"CREATE POLICY {name} ON {_name(table)} {terms}")


def _alter(table: Table, change: str) -> TextClause:
    return _text(f"ALTER TABLE {_name(table)} {change}")


def owner_setting(owner_id: str) -> TextClause:
    """Let a transaction see an owner's rows until its end. SET takes no parameters."""
    return _text(f"SET LOCAL {OWNER_SETTING} = {quoted_literal(owner_id)}")


@lru_cache(maxsize=256)
def insert_values(table: Table) -> Insert:
    """Insert rows whose values are bound under the names of their columns."""
    return insert(table)


class Staging(NamedTuple):
    """Statements that COPY into a table by way of a temporary one, which it may always do."""

    create: TextClause
    insert: TextClause
    drop: TextClause


@lru_cache(maxsize=256)
def staging(table: Table, staged: Table, columns: Sequence[str]) -> Staging:
    """Return the statements around a COPY into `staged`, whose rows go into `table`."""
    names = ", ".join(map(quoted_identifier, columns))
    temporary = quoted_identifier(staged.name)
    return Staging(
        _text(
            f"CREATE TEMPORARY TABLE {temporary} ON COMMIT DROP AS "
            f"SELECT {names} FROM {_name(table)} WITH NO DATA"
        ),
        _text(f"INSERT INTO {_name(table)} ({names}) SELECT {names} FROM pg_temp.{temporary}"),
        _text(f"DROP TABLE pg_temp.{temporary}"),
    )


def _name(table: Table) -> str:
    return f"{quoted_identifier(table.schema or '')}.{quoted_identifier(table.name)}"


def _text(statement: str) -> TextClause:
    # A colon would read as a bound parameter.
    return text(statement.replace(":", r"\:"))
