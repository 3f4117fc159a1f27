"""The arm by meaning: the chunks whose vectors are nearest to the query's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    Integer,
    SmallInteger,
    bindparam,
    func,
    literal_column,
    select,
)

from llmemory.models import Tables
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.indexed import in_order, indexed
from llmemory.statements.search.nearest import distance_of, unindexed
from llmemory.statements.search.shape import SearchShape
from llmemory.types import SearchType

__all__ = ["similarity_of", "vector_arm"]


def vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the nearest chunks: chunk_id, value (the cosine similarity), rank."""
    if shape.index is None:
        nearest = unindexed(tables, shape).subquery("nearest")
        order: tuple[ColumnElement[Any], ...] = (nearest.c.distance, nearest.c.chunk_id)
    else:
        nearest = indexed(tables, shape).subquery("nearest")
        order = in_order(nearest)
    if shape.index is not None and shape.search_type is SearchType.HYBRID:
        place = func.row_number().over(order_by=order).label("place")
        nearest = select(nearest, place).subquery("placed")
        # What comes after the candidates keeps its place, however much of that is asked for.
        beyond = func.greatest(nearest.c.place - bindparam("candidates", type_=Integer), 0)
        order = (beyond, nearest.c.distance, nearest.c.chunk_id)
    return select(
        nearest.c.chunk_id,
        _similarity(nearest.c.distance).label("value"),
        func.row_number().over(order_by=order).label("rank"),
    ).cte("vector_arm")


def similarity_of(
    tables: Tables, shape: SearchShape, chunk_id: ColumnElement[Any]
) -> ColumnElement[Any]:
    """Return a chunk's similarity to the query, None without a vector; by ``pk_embeddings``."""
    embeddings = tables.embeddings
    return (
        select(_similarity(distance_of(tables, shape)))
        .where(
            owner_is(embeddings),
            embeddings.c.chunk_id == chunk_id,
            embeddings.c.space_id == bindparam("space", type_=SmallInteger),
        )
        .scalar_subquery()
    )


def _similarity(distance: ColumnElement[Any]) -> ColumnElement[Any]:
    # A vector of zeros has no direction: its distance is NaN, which no JSON can carry.
    nothing: ColumnElement[Any] = literal_column("'NaN'::float8")
    return func.coalesce(1 - func.nullif(distance, nothing), 0.0, type_=Float)
