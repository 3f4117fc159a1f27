"""The arm by meaning: the chunks whose vectors are nearest to the query's."""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    CTE,
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

__all__ = ["vector_arm"]


def vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the nearest chunks: chunk_id, value (the cosine similarity), rank, relative."""
    embeddings = tables.embeddings
    halfvec = HALFVEC(shape.dimensions)
    query = cast(cast(bindparam("embedding", type_=Text), Text), halfvec)
    distance = cast(embeddings.c.embedding, halfvec).cosine_distance(query)
    nearest = (
        narrowed(
            tables,
            select(embeddings.c.chunk_id, distance.label("distance")).select_from(embeddings),
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
    # A vector of zeros has no direction: its distance is NaN, which no JSON can carry.
    similarity = func.coalesce(
        1 - func.nullif(nearest.c.distance, literal_column("'NaN'::float8")), 0.0, type_=Float
    )
    return ranked(
        select(
            nearest.c.chunk_id,
            similarity.label("value"),
            func.row_number().over(order_by=(nearest.c.distance, nearest.c.chunk_id)).label("rank"),
        ),
        "vector_arm",
    )
