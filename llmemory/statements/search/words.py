"""The arm by words: BM25 over the chunks that share a term with the query.

A term is a lexeme of the query, known by its key, a hash of it and the owner, which finds chunks in
the index. A part of the key is its position in the vectors of weights, whose inner product is the
score.
"""

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
    FromClause,
    Integer,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, array

from llmemory.models import LEXICAL_DIMENSIONS, LEXICAL_UNITS, Tables
from llmemory.statements import AnySelect
from llmemory.statements.functions import lexical_of, terms_of
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.narrowing import narrowed
from llmemory.statements.search.query_terms import query_terms
from llmemory.statements.search.shape import SearchShape, pool, ranked, whole

__all__ = ["lexical_score_of", "text_arm"]

_KEYS = ARRAY(BigInteger)

ENOUGH = 4
"""Of the candidates wanted, the part from which on the rarer terms' chunks are enough."""

LOOKED_UP_PER_READ = 20
"""Chunks that the index looks up in the time that reading one takes."""


def text_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the chunks with the best words: chunk_id, value (the BM25 score), rank, highest."""
    candidates = _candidates(tables, shape)
    best = (
        select(candidates.c.chunk_id, candidates.c.lexical_score)
        .order_by(candidates.c.lexical_score.desc(), candidates.c.chunk_id)
        .limit(pool(shape))
        .subquery("best")
    )
    return ranked(
        select(
            best.c.chunk_id,
            best.c.lexical_score.label("value"),
            func.row_number()
            .over(order_by=(best.c.lexical_score.desc(), best.c.chunk_id))
            .label("rank"),
        ),
        "text_arm",
    )


def lexical_score_of(
    tables: Tables, shape: SearchShape, chunk_id: ColumnElement[Any]
) -> ColumnElement[Any]:
    """Return a chunk's BM25 score, 0 if it has none of the query's words; by ``pk_chunks``."""
    chunks = tables.chunks
    return (
        select(_score(tables, shape, chunks))
        .where(owner_is(chunks), chunks.c.chunk_id == chunk_id)
        .scalar_subquery()
    )


def _score(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[Any]:
    weights = select(_query_weights(tables, shape).c.weights).scalar_subquery()
    # pgvector's operator gives the negative inner product.
    return type_coerce(-lexical_of(rows).max_inner_product(weights), Float)


def _candidates(tables: Tables, shape: SearchShape) -> CTE:
    """Return scored chunks: those with the query's rarer terms, then some with others.

    What a common term alone would add is many chunks with low scores. So terms are taken from the
    rarest on, as long as they promise no more than ``candidates_by_words`` chunks; the others only
    add to scores. Where the rarer ones find few, the next one gives some of its chunks, and all
    terms do where even that, with a filter, does not fill the page.
    """
    chunks = tables.chunks
    keys = _keys_by_rarity(_term_counts(tables, shape))
    rare, following, every = (
        select(column).scalar_subquery() for column in (keys.c.rare, keys.c.following, keys.c.every)
    )
    wanted = bindparam("candidates_by_words", type_=Integer)
    is_rare, is_following = terms_of(chunks).overlap(rare), terms_of(chunks).contains(following)

    def scored(*conditions: ColumnElement[bool]) -> AnySelect:
        score = _score(tables, shape, chunks)
        statement = select(chunks.c.chunk_id, score.label("lexical_score")).select_from(chunks)
        return narrowed(tables, statement, chunks, shape).where(owner_is(chunks), *conditions)

    def are_fewer(enough: ColumnElement[int], *parts: CTE) -> ColumnElement[bool]:
        counts = [select(func.count()).select_from(part).scalar_subquery() for part in parts]
        return sum(counts[1:], counts[0]) < enough

    found = scored(is_rare).limit(wanted * 5).cte("rare_candidates").prefix_with("MATERIALIZED")
    is_short = are_fewer(func.greatest(wanted / ENOUGH, pool(shape)), found)
    is_everywhere = select(keys.c.is_everywhere).scalar_subquery()
    looked_up = scored(is_short, is_following, not_(is_rare))
    if shape.is_narrowed:
        more: Any = looked_up.limit(wanted)
    else:
        met = _met(tables, shape, following).where(is_short, is_everywhere)
        more = union_all(
            whole(looked_up.where(not_(is_everywhere)).limit(wanted)), whole(met.limit(wanted))
        )
    others = more.cte("following_candidates").prefix_with("MATERIALIZED")
    rest = scored(
        are_fewer(pool(shape), found, others),
        terms_of(chunks).overlap(every),
        not_(is_rare),
        or_(following.is_(None), not_(is_following)),
    ).limit(pool(shape))
    return union_all(select(found), select(others), whole(rest)).cte("candidates")


def _met(tables: Tables, shape: SearchShape, key: ColumnElement[Any]) -> AnySelect:
    """Return scored chunks with a term that most have, the newest first: none is looked up."""
    chunks = tables.chunks
    newest = (
        select(chunks.c.chunk_id, chunks.c.words)
        .where(owner_is(chunks))
        .order_by(chunks.c.chunk_id.desc())
        .offset(literal_column("0"))
        .subquery("newest")
    )
    rare = select(_keys_by_rarity(_term_counts(tables, shape)).c.rare).scalar_subquery()
    score = _score(tables, shape, newest)
    return select(newest.c.chunk_id, score.label("lexical_score")).where(
        terms_of(newest).contains(key), not_(terms_of(newest).overlap(rare))
    )


@lru_cache(maxsize=1024)
def _term_counts(tables: Tables, shape: SearchShape) -> CTE:
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
def _keys_by_rarity(counts: CTE) -> CTE:
    """Return arrays of keys: of the terms whose chunks are candidates, of the next one, of all.

    Also whether the next one is in so many chunks that some are met sooner than looked up.
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
            type_coerce(are_common.filter(not_(term.is_rare)), ARRAY(Boolean))[1].label(
                "is_everywhere"
            ),
        )
        .cte("keys")
        .prefix_with("MATERIALIZED")
    )


@lru_cache(maxsize=1024)
def _query_weights(tables: Tables, shape: SearchShape) -> CTE:
    """Return one row: the query as a sparse vector of BM25's idf at its terms' positions."""
    counts = _term_counts(tables, shape)
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
