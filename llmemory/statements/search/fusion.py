"""One ranking of one arm's hits or of both."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, ColumnElement, Float, bindparam, func, null, select

from llmemory.statements import AnySelect
from llmemory.types import SearchType

__all__ = ["fused", "single"]


def single(arm: CTE, search_type: SearchType) -> AnySelect:
    """Return the hits of one arm alone, with scores from 0 to 1."""
    nothing = null()
    score: ColumnElement[Any]
    values: tuple[ColumnElement[Any], ...]
    if search_type is SearchType.VECTOR:
        score = func.least(func.greatest(arm.c.value, 0.0), 1.0)
        values = (arm.c.value, nothing, arm.c.rank, nothing)
    else:
        score = func.coalesce(arm.c.value / func.nullif(arm.c.highest, 0.0, type_=Float), 0.0)
        values = (nothing, arm.c.value, nothing, arm.c.rank)
    return _found(arm.c.chunk_id, score, arm.c.rank, *values)


def fused(vector: CTE, words: CTE) -> AnySelect:
    """Return the hits of both arms by their relative scores, weighted by ``alpha``.

    A hit that one arm lacks has 0 there. Source of the method: Bruch et al. 2023, convex
    combination of scores scaled by their minimum and maximum.
    """
    alpha = bindparam("alpha", type_=Float)
    score = alpha * func.coalesce(vector.c.relative, 0.0) + (1 - alpha) * func.coalesce(
        words.c.relative, 0.0
    )
    return _found(
        func.coalesce(vector.c.chunk_id, words.c.chunk_id),
        score,
        func.least(vector.c.rank, words.c.rank),
        vector.c.value,
        words.c.value,
        vector.c.rank,
        words.c.rank,
    ).select_from(vector.join(words, vector.c.chunk_id == words.c.chunk_id, full=True))


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
