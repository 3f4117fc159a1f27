"""The arm by meaning: the chunks whose vectors are nearest to the query's."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    SmallInteger,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)

from llmemory.models import Tables
from llmemory.statements.search.narrowing import narrowed
from llmemory.statements.search.shape import SearchShape, owner_is, pool, ranked

__all__ = ["similarity_of", "vector_arm"]


def vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the nearest chunks: chunk_id, value (the cosine similarity), rank, highest."""
    embeddings = tables.embeddings
    distance = _distance(tables, shape).label("distance")
    nearest = (
        narrowed(
            tables,
            select(embeddings.c.chunk_id, distance).select_from(embeddings),
            embeddings,
            shape,
        )
        .where(
            owner_is(embeddings),
            embeddings.c.space_id == bindparam("space", type_=SmallInteger),
        )
        .order_by(column("distance"), embeddings.c.chunk_id)
        .limit(pool(shape))
        .subquery("nearest")
    )
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
        select(_similarity(_distance(tables, shape)))
        .where(
            owner_is(embeddings),
            embeddings.c.chunk_id == chunk_id,
            embeddings.c.space_id == bindparam("space", type_=SmallInteger),
        )
        .scalar_subquery()
    )


def _distance(tables: Tables, shape: SearchShape) -> ColumnElement[Any]:
    halfvec = HALFVEC(shape.dimensions)
    query = cast(cast(bindparam("embedding", type_=Text), Text), halfvec)
    distance: ColumnElement[Any] = cast(tables.embeddings.c.embedding, halfvec).cosine_distance(
        query
    )
    return distance


def _similarity(distance: ColumnElement[Any]) -> ColumnElement[Any]:
    # A vector of zeros has no direction: its distance is NaN, which no JSON can carry.
    nothing: ColumnElement[Any] = literal_column("'NaN'::float8")
    return func.coalesce(1 - func.nullif(distance, nothing), 0.0, type_=Float)
