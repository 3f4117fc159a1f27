"""Statements that spread a schema's tables over the nodes of a Citus cluster, and bring them back.

Rows go by ``owner_id``: what belongs to an owner lies on one node, where every statement about the
owner runs as a whole. Or all of a schema lies on one node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import Table, TextClause, text

from llmemory.constructs import quoted_identifier, quoted_literal
from llmemory.models import Tables
from llmemory.statements.row_level_security import owned_tables

__all__ = [
    "DISTRIBUTED_TABLES",
    "IS_INSTALLED",
    "LOCAL_SCHEMA",
    "PROPAGATED",
    "by_owner",
    "by_owner_undone",
    "by_schema",
    "by_schema_undone",
    "distributed_functions",
]

IS_INSTALLED = text(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') AS is_installed"
)

DISTRIBUTED_TABLES = text(
    "SELECT c.relname AS name, d.partmethod = 'h' AS is_by_owner "
    "FROM pg_catalog.pg_dist_partition AS d "
    "JOIN pg_catalog.pg_class AS c ON c.oid = d.logicalrelid "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema_name AND c.relname = ANY (:table_names)"
)
"""Which tables are distributed, and whether by the hash of their owners. Citus's own catalog."""

LOCAL_SCHEMA = text("SET LOCAL citus.enable_schema_based_sharding = off")
"""Keeps a schema that the transaction creates from being distributed before it has its tables.

Without Citus nobody reads it.
"""

PROPAGATED = text("SELECT current_setting('citus.propagate_set_commands', true) AS propagated")
"""Which settings of a transaction the nodes are told of."""

# Those that statements call. What these call follows them, and so does what a column is made by.
_CALLED = (
    "search_vector(text, text)",
    "word_vector(text, text)",
    "phrase_query(text, text)",
    "lexical_terms(text, tsvector)",
    "plain_words(text)",
    "compound_words(text)",
)


def by_owner(tables: Tables, done: Collection[str]) -> Iterator[TextClause]:
    """Yield what distributes the tables but those named in `done`: parents before children."""
    documents = _name(tables.documents)
    for table in owned_tables(tables):
        if table.name not in done:
            beside = ""
            if table is not tables.documents:
                beside = f", colocate_with => {quoted_literal(documents)}"
            yield _call("create_distributed_table", _name(table), f", 'owner_id'{beside}")
    # Read by every search and of a few rows: a copy of it is on each node.
    if tables.embedding_spaces.name not in done:
        yield _call("create_reference_table", _name(tables.embedding_spaces))


def by_owner_undone(tables: Tables, done: Collection[str]) -> Iterator[TextClause]:
    """Yield what makes plain tables of those named in `done`."""
    # Foreign keys tie these together: one cannot go without the others.
    tied = [tables.documents, tables.chunks, tables.embeddings, tables.embedding_jobs]
    if not {table.name for table in tied}.isdisjoint(done):
        yield _call(
            "undistribute_table", _name(tables.documents), ", cascade_via_foreign_keys => true"
        )
    for table in (tables.lexical_statistics, tables.embedding_spaces):
        if table.name in done:
            yield _call("undistribute_table", _name(table))


def by_schema(tables: Tables) -> TextClause:
    """Return what puts all tables of the schema on one node."""
    return _call("citus_schema_distribute", quoted_identifier(tables.schema))


def by_schema_undone(tables: Tables) -> TextClause:
    """Return what makes plain tables of them."""
    return _call("citus_schema_undistribute", quoted_identifier(tables.schema))


def distributed_functions(tables: Tables) -> Iterator[TextClause]:
    """Yield what has the functions of the schema on every node."""
    for function in _CALLED:
        name = f"{quoted_identifier(tables.schema)}.{function}"
        yield _call("create_distributed_function", name)


def _call(function: str, name: str, others: str = "") -> TextClause:
    # A colon would read as a bound parameter.
    return text(f"SELECT {function}({quoted_literal(name)}{others})".replace(":", r"\:"))


def _name(table: Table) -> str:
    return f"{quoted_identifier(table.schema or '')}.{quoted_identifier(table.name)}"
