"""How rare the query's terms are among the owner's chunks, and what follows from that."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Float,
    Integer,
    bindparam,
    cast,
    column,
    func,
    literal,
    not_,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array

from llmemory.models import LEXICAL_DIMENSIONS, LEXICAL_UNITS, Tables
from llmemory.statements import AnySelect
from llmemory.statements.functions import terms_of
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.query_terms import query_terms
from llmemory.statements.search.shape import SearchShape

__all__ = ["keys_by_rarity", "query_weights", "term_counts"]

_KEYS = ARRAY(BigInteger)

LOOKED_UP_PER_READ = 20
"""Chunks that the index looks up in the time that reading one takes."""


@lru_cache(maxsize=1024)
def term_counts(tables: Tables, shape: SearchShape) -> CTE:
    """Return the query's terms with chunk_count, how many chunks have each, and total.

    A large owner's common terms are counted now and then, all others here and now.
    """
    terms = query_terms(tables, shape)
    chunks, statistics = tables.chunks, tables.lexical_statistics

    def known(term: ColumnElement[Any]) -> AnySelect:
        return select(statistics.c.chunk_count).where(
            owner_is(statistics), statistics.c.term == term
        )

    counted = (
        select(func.count())
        .where(owner_is(chunks), terms_of(chunks).contains(array([terms.c.key])))
        .correlate(terms)
        .scalar_subquery()
    )
    total = func.coalesce(
        known(literal(0, BigInteger)).scalar_subquery(),
        select(func.count()).where(owner_is(chunks)).scalar_subquery(),
    )
    return (
        select(
            terms,
            func.coalesce(known(terms.c.key).correlate(terms).scalar_subquery(), counted).label(
                "chunk_count"
            ),
            total.label("total"),
        )
        .cte("term_counts")
        # Each count is used several times below and must be made once.
        .prefix_with("MATERIALIZED")
    )


@lru_cache(maxsize=1024)
def keys_by_rarity(counts: CTE) -> CTE:
    """Return arrays of keys: of the terms whose chunks are candidates, of the next one, of all.

    Also whether even the rarest is in more chunks than are wanted, and whether the next one is in
    so many that some are met sooner than looked up.
    """
    wanted = bindparam("candidates_by_words", type_=Integer)
    by_rarity = (counts.c.chunk_count, counts.c.key)
    place = func.row_number().over(order_by=by_rarity)
    promised = func.sum(counts.c.chunk_count).over(order_by=by_rarity)
    term = (
        select(
            counts.c.key,
            counts.c.chunk_count,
            counts.c.total,
            or_(place == 1, promised <= wanted).label("is_rare"),
        )
        .where(counts.c.chunk_count > 0)
        .subquery("term")
        .c
    )
    ordered = func.array_agg(aggregate_order_by(term.key, term.chunk_count, term.key), type_=_KEYS)
    # Beginning and end of a slice are Python's; the driver gets PostgreSQL's.
    following = ordered.filter(not_(term.is_rare))[1:1]
    share = term.chunk_count / func.greatest(term.total, 1)
    pays = term.chunk_count * share > wanted * LOOKED_UP_PER_READ
    are_common = func.array_agg(aggregate_order_by(pays, term.chunk_count, term.key))
    return (
        select(
            func.array_agg(term.key, type_=_KEYS).filter(term.is_rare).label("rare"),
            following.label("following"),
            func.array_agg(term.key, type_=_KEYS).label("every"),
            (func.min(term.chunk_count) > wanted).label("is_common"),
            type_coerce(are_common.filter(not_(term.is_rare)), ARRAY(Boolean))[1].label(
                "is_everywhere"
            ),
        )
        .cte("keys")
        .prefix_with("MATERIALIZED")
    )


@lru_cache(maxsize=1024)
def query_weights(tables: Tables, shape: SearchShape) -> CTE:
    """Return one row: the query as a sparse vector of BM25's idf at its terms' positions."""
    counts = term_counts(tables, shape)
    rarity = func.ln(
        1
        + func.greatest(counts.c.total - counts.c.chunk_count + 0.5, 0.5)
        / (counts.c.chunk_count + 0.5)
    )
    weighted = (
        select(
            counts.c.position,
            # Two lexemes that meet at a position are summed in the chunks as well.
            func.sum(counts.c.frequency * rarity).label("weight"),
        )
        .group_by(counts.c.position)
        .order_by(column("weight").desc())
        # More a sparsevec cannot hold.
        .limit(16_000)
        .subquery("weighted")
    )
    entries = func.string_agg(
        func.concat(weighted.c.position, ":", cast(weighted.c.weight / LEXICAL_UNITS, Float(24))),
        ",",
    )
    written = func.concat("{", entries, f"}}/{LEXICAL_DIMENSIONS}")
    return (
        select(cast(written, SPARSEVEC(LEXICAL_DIMENSIONS)).label("weights"))
        .cte("query_weights")
        .prefix_with("MATERIALIZED")
    )
