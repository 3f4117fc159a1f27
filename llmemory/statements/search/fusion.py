"""One ranking of one arm's hits or of both."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    bindparam,
    case,
    cast,
    func,
    null,
    select,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.search.shape import SearchShape
from llmemory.statements.search.vectors import similarity_of
from llmemory.statements.search.words import lexical_score_of
from llmemory.types import SearchType

__all__ = ["fused", "single"]


def single(arm: CTE, search_type: SearchType) -> AnySelect:
    """Return one page of the hits of one arm alone, with scores from 0 to 1.

    The page is ranked by value: those of another may have higher ones.
    """
    limit, offset = bindparam("limit", type_=BigInteger), bindparam("offset", type_=BigInteger)
    hit = select(arm).order_by(arm.c.rank).limit(limit).offset(offset).subquery("hit").c
    rank = func.row_number().over(order_by=(hit.value.desc(), hit.rank)) + offset
    # Typed, since a NULL alone would be a text to what reads them.
    no_value, no_rank = cast(null(), Float), cast(null(), BigInteger)
    share: ColumnElement[Any]
    values: tuple[ColumnElement[Any], ...]
    if search_type is SearchType.VECTOR:
        share = hit.value
        values = (hit.value, no_value, rank, no_rank)
    else:
        share = _share(hit.value, arm)
        values = (no_value, hit.value, no_rank, rank)
    score = func.least(func.greatest(share, 0.0), 1.0)
    return _found(hit.chunk_id, score, rank, *values)


def fused(tables: Tables, shape: SearchShape, vector: CTE, words: CTE) -> AnySelect:
    """Return the hits of both arms by what share of the best hit's value they reach.

    The shares are weighted by ``alpha`` for the vector arm. A hit that only one arm found has its
    value in the other looked up; without that it would fall behind hits that are mediocre in
    both. What neither arm ranks among its first ``candidates`` has the score 0 and comes last, so
    that a page deep in the ranking does not change those before it. Source of the method: Bruch
    et al. 2023, convex combination of normalised scores.
    """
    alpha, candidates = bindparam("alpha", type_=Float), bindparam("candidates", type_=Integer)
    # Not coalesce(): under row level security no index would serve a condition with it.
    chunk_id = case((vector.c.chunk_id.is_(None), words.c.chunk_id), else_=vector.c.chunk_id)
    similarity = func.coalesce(vector.c.value, similarity_of(tables, shape, chunk_id), 0.0)
    lexical_score = func.coalesce(words.c.value, lexical_score_of(tables, shape, chunk_id), 0.0)
    score = alpha * _share(similarity, vector) + (1 - alpha) * _share(lexical_score, words)
    best_rank = func.least(vector.c.rank, words.c.rank)
    return _found(
        chunk_id,
        case((best_rank > candidates, 0.0), else_=score),
        best_rank,
        vector.c.value,
        words.c.value,
        vector.c.rank,
        words.c.rank,
    ).select_from(vector.join(words, vector.c.chunk_id == words.c.chunk_id, full=True))


def _share(value: ColumnElement[Any], arm: CTE) -> ColumnElement[Any]:
    """Return which part of the value of the arm's first hit `value` is, 0 without one above 0.

    What follows the candidates may have more.
    """
    first = select(arm.c.value).where(arm.c.rank == 1).scalar_subquery()
    positive = func.nullif(func.greatest(first, 0.0), 0.0, type_=Float)
    return func.coalesce(func.greatest(value, 0.0) / positive, 0.0, type_=Float)


def _found(*columns: ColumnElement[Any]) -> AnySelect:
    names = (
        "chunk_id",
        "score",
        "best_rank",
        "similarity",
        "lexical_score",
        "vector_rank",
        "text_rank",
    )
    return select(*(entry.label(name) for name, entry in zip(names, columns, strict=True)))
