"""Statements of upkeep: planner statistics, counts of words, locks and progress."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import (
    BigInteger,
    Delete,
    Insert,
    Integer,
    Table,
    Text,
    TextClause,
    bindparam,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert

from llmemory.models import Tables, quoted_identifier
from llmemory.statements import AnySelect
from llmemory.statements.functions import terms_of
from llmemory.statements.parameters import owner_is

__all__ = [
    "BUILD_PROGRESS",
    "OWNED_TABLES",
    "PLANNER_ROWS",
    "TRY_LOCK",
    "TRY_LOCK_IN_TRANSACTION",
    "UNLOCK",
    "analyze",
    "chunks_of_large_owners",
    "count_rows",
    "count_terms",
    "counted_owners",
    "forget_terms",
    "vectors_of_large_owners",
]

TRY_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:lock_name, 0))")
UNLOCK = text("SELECT pg_advisory_unlock(hashtextextended(:lock_name, 0))")
TRY_LOCK_IN_TRANSACTION = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:lock_name, 0))")
"""Conflicts with ``TRY_LOCK`` on the same name."""

OWNED_TABLES = text(
    "SELECT c.relname FROM pg_catalog.pg_class AS c "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema_name AND c.relname = ANY (:table_names) "
    "AND pg_has_role(c.relowner, 'USAGE')"
)

PLANNER_ROWS = text(
    # Where row level security is active, pg_stats does not tell.
    "SELECT c.relname AS name, c.reltuples AS rows, row_security_active(c.oid) OR EXISTS ("
    "SELECT FROM pg_catalog.pg_stats AS s "
    "WHERE s.schemaname = n.nspname AND s.tablename = c.relname) AS has_statistics "
    "FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema_name AND c.relname = ANY (:table_names)"
)
"""What the planner knows of tables: their rows, -1 before the first ANALYZE."""

BUILD_PROGRESS = text(
    "SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total "
    "FROM pg_catalog.pg_stat_progress_create_index AS p "
    "JOIN pg_catalog.pg_class AS c ON c.oid = p.relid "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    # It shows the builds of all databases, and copies of one have the same numbers for tables.
    "WHERE p.datname = pg_catalog.current_database() "
    "AND n.nspname = :schema_name AND c.relname = :table_name"
)
"""How far the index build on a table is; there is one at a time, under the lock."""


@lru_cache(maxsize=1024)
def analyze(table: Table) -> TextClause:
    """Return ANALYZE of a table; it gives way to an index build that is under way."""
    name = f"{quoted_identifier(table.schema or '')}.{quoted_identifier(table.name)}"
    # A colon would read as a bound parameter.
    return text(f"ANALYZE (SKIP_LOCKED) {name}".replace(":", r"\:"))


@lru_cache(maxsize=1024)
def count_rows(table: Table) -> AnySelect:
    """Count the rows of all owners; served by the primary key alone where it is vacuumed."""
    return select(func.count()).select_from(table)


@lru_cache(maxsize=256)
def vectors_of_large_owners(tables: Tables) -> AnySelect:
    """Return owner_id, space_id and vectors, where these are ``least`` or more; most first."""
    embeddings = tables.embeddings
    vectors = func.count().label("vectors")
    return (
        select(embeddings.c.owner_id, embeddings.c.space_id, vectors)
        .group_by(embeddings.c.owner_id, embeddings.c.space_id)
        .having(func.count() >= bindparam("least", type_=BigInteger))
        .order_by(vectors.desc(), embeddings.c.owner_id, embeddings.c.space_id)
    )


@lru_cache(maxsize=256)
def chunks_of_large_owners(tables: Tables) -> AnySelect:
    """Return owner_id and chunks, where these are ``least`` or more."""
    chunks = tables.chunks
    return (
        select(chunks.c.owner_id, func.count().label("chunks"))
        .group_by(chunks.c.owner_id)
        .having(func.count() >= bindparam("least", type_=BigInteger))
    )


@lru_cache(maxsize=256)
def counted_owners(tables: Tables) -> AnySelect:
    """Return the owners whose words are counted."""
    statistics = tables.lexical_statistics
    return select(statistics.c.owner_id).where(statistics.c.term == literal(0, BigInteger))


@lru_cache(maxsize=256)
def forget_terms(tables: Tables) -> Delete:
    """Delete what was counted of an owner."""
    return delete(tables.lexical_statistics).where(owner_is(tables.lexical_statistics))


@lru_cache(maxsize=256)
def count_terms(tables: Tables) -> Insert:
    """Count an owner's common terms in a sample, and put the counts in place of the older ones.

    One statement, so that searches see the older counts or the new ones. Binds ``owner``,
    ``all_chunks``, ``one_in``, of how many chunks one is looked at, ``minimum``, the chunks that a
    term must be in, and ``now``.
    """
    chunks, statistics = tables.chunks, tables.lexical_statistics
    one_in = bindparam("one_in", type_=Integer)
    sampled = (
        select(func.unnest(terms_of(chunks)).label("term"))
        .where(owner_is(chunks), func.mod(func.uuid_hash(chunks.c.chunk_id), one_in) == 0)
        .subquery("sampled")
    )
    chunk_count = (func.count() * one_in).label("chunk_count")
    common = (
        select(sampled.c.term, chunk_count)
        .group_by(sampled.c.term)
        .having(func.count() * one_in >= bindparam("minimum", type_=BigInteger))
    )
    total = select(
        literal(0, BigInteger).label("term"),
        cast(bindparam("all_chunks", type_=BigInteger), BigInteger).label("chunk_count"),
    )
    counted = union_all(common, total).cte("counted").prefix_with("MATERIALIZED")
    outdated = (
        delete(statistics)
        .where(owner_is(statistics), statistics.c.term.not_in(select(counted.c.term)))
        .cte("outdated")
    )
    source = select(
        cast(bindparam("owner", type_=Text), Text),
        counted.c.term,
        func.least(counted.c.chunk_count, bindparam("all_chunks", type_=BigInteger)),
        cast(bindparam("now", type_=TIMESTAMP(timezone=True)), TIMESTAMP(timezone=True)),
    )
    statement = insert(statistics).from_select(
        [column.name for column in statistics.columns], source
    )
    return statement.add_cte(outdated).on_conflict_do_update(
        index_elements=[statistics.c.owner_id, statistics.c.term],
        set_={
            "chunk_count": statement.excluded.chunk_count,
            "counted_at": statement.excluded.counted_at,
        },
    )
