"""The arm by meaning: the chunks whose vectors are nearest to the query's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    SmallInteger,
    bindparam,
    func,
    literal_column,
    select,
)

from llmemory.models import Tables
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.nearest import distance_of, exact, indexed
from llmemory.statements.search.shape import SearchShape, ranked

__all__ = ["similarity_of", "vector_arm"]


def vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the nearest chunks: chunk_id, value (the cosine similarity), rank, highest."""
    find = exact if shape.index is None else indexed
    nearest = find(tables, shape).subquery("nearest")
    return ranked(
        select(
            nearest.c.chunk_id,
            _similarity(nearest.c.distance).label("value"),
            func.row_number().over(order_by=(nearest.c.distance, nearest.c.chunk_id)).label("rank"),
        ),
        "vector_arm",
    )


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
