"""The arm by meaning: the chunks whose vectors are nearest to the query's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    SmallInteger,
    Subquery,
    bindparam,
    func,
    literal_column,
    select,
)

from llmemory.models import Tables
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.indexed import in_order, indexed
from llmemory.statements.search.nearest import distance_of, unindexed
from llmemory.statements.search.shape import SearchShape, ranked
from llmemory.types import SearchType

__all__ = ["similarity_of", "vector_arm"]


def vector_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the nearest chunks: chunk_id, value (the cosine similarity), rank, highest.

    Through an HNSW index a search by meaning alone gets the chunks of its page and no others.
    """
    if shape.index is None:
        nearest = unindexed(tables, shape).subquery("nearest")
        rank: ColumnElement[int] = _place(nearest)
    elif shape.search_type is SearchType.HYBRID:
        nearest = _in_places(tables, shape)
        # What comes after the candidates keeps its place, however much of that is asked for.
        beyond = func.greatest(nearest.c.place - bindparam("candidates", type_=Integer), 0)
        rank = _place(nearest, beyond)
    else:
        offset = bindparam("offset", type_=BigInteger)
        found = indexed(tables, shape).subquery("found")
        page = select(found).order_by(*in_order(found)).offset(offset)
        nearest = page.limit(bindparam("limit", type_=BigInteger)).subquery("nearest")
        rank = _place(nearest) + offset
    similarity = _similarity(nearest.c.distance)
    hits = select(nearest.c.chunk_id, similarity.label("value"), rank.label("rank"))
    return ranked(hits, "vector_arm")


def _in_places(tables: Tables, shape: SearchShape) -> Subquery:
    found = indexed(tables, shape).subquery("found")
    place = func.row_number().over(order_by=in_order(found))
    return select(found, place.label("place")).subquery("nearest")


def _place(nearest: Subquery, *first: ColumnElement[Any]) -> ColumnElement[int]:
    return func.row_number().over(order_by=(*first, nearest.c.distance, nearest.c.chunk_id))


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
