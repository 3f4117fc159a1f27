"""The owner's nearest vectors, read one by one in the way that suits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    SmallInteger,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    not_,
    or_,
    select,
    true,
    union_all,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import conditions
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.narrowing import FENCE, narrowed, passes
from llmemory.statements.search.shape import SearchShape, pool, whole

__all__ = [
    "among",
    "are_the_owners",
    "counts",
    "distance_of",
    "exact",
    "nearest",
    "of_query",
    "seem_few",
    "unindexed",
]

SURELY_FEW = 16
"""Chunks that are read one by one, whatever the owner has besides."""


def exact(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return chunk_id and distance of the nearest of all vectors that pass.

    Served by ``pk_embeddings`` and the filters' indexes.
    """
    embeddings = tables.embeddings
    statement = select(embeddings.c.chunk_id, distance_of(tables, shape)).select_from(embeddings)
    statement = narrowed(tables, statement, embeddings, shape)
    return nearest(statement.where(*are_the_owners(tables)), shape)


def unindexed(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return the same as ``exact``, found in the way that suits.

    What a filter leaves is read as a whole while it is little; else all vectors are compared, and
    the nearest asked whether they pass until enough do. Where nobody knows how much a filter
    leaves, the statement finds out, and leaves out the other way at run time.
    """
    if not shape.is_sifted or shape.passing == "few":
        return exact(tables, shape)
    if shape.passing == "many":
        return _sifted(tables, shape)
    tried = _tried(tables, shape)
    ways = (
        whole(among(tables, shape, tried.chunks).where(tried.are_few)),
        whole(_sifted(tables, shape, tried.are_few)),
    )
    return select(union_all(*ways).subquery("found"))


def seem_few(passing: Any, total: Any, hits: Any) -> Any:
    """Return whether what passes is read sooner than all are compared and asked, nearest first.

    To read one of what passes takes nine times as long as to compare one more vector, to ask one
    whether it passes twelve times. For each hit as many are asked as there are for each that
    passes.

    Args:
        passing: How many pass, a number or an expression, as the others.
        total: Of how many.
        hits: How many are wanted.
    """
    return 9 * passing * passing < total * (passing + 12 * hits)


def counts(tables: Tables, shape: SearchShape) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Return how many chunks pass, and of how many, which is 0 while those are surely few."""
    tried = _tried(tables, shape).counted
    return select(tried.c.passing).scalar_subquery(), select(tried.c.total).scalar_subquery()


class _Tried(NamedTuple):
    counted: CTE
    chunks: CTE
    are_few: ColumnElement[bool]


@lru_cache(maxsize=1024)
def _tried(tables: Tables, shape: SearchShape) -> _Tried:
    """Return how many chunks pass, those that do if they are few, and whether they are."""
    documents, chunks = tables.documents, tables.chunks
    passing_documents = (
        select(documents.c.document_id, documents.c.chunk_count)
        .where(owner_is(documents), *conditions(documents, shape.filters, leave_few=True))
        .cte("tried_documents")
        .prefix_with("MATERIALIZED")
    )
    passing = func.coalesce(func.sum(passing_documents.c.chunk_count, type_=BigInteger), 0)
    total = (
        select(func.count())
        .select_from(tables.embeddings)
        .where(*are_the_owners(tables))
        .scalar_subquery()
    )
    counted = (
        select(
            passing.label("passing"),
            case((passing > SURELY_FEW, total), else_=0).label("total"),
        )
        .select_from(passing_documents)
        .cte("counted")
        .prefix_with("MATERIALIZED")
    )
    few = or_(counted.c.total == 0, seem_few(counted.c.passing, counted.c.total, pool(shape)))
    are_few = select(few).scalar_subquery()
    theirs = (
        select(chunks.c.chunk_id)
        .where(owner_is(chunks), chunks.c.document_id == passing_documents.c.document_id)
        .correlate(passing_documents)
        .offset(FENCE)
        .lateral("theirs")
    )
    passing_chunks = (
        select(theirs.c.chunk_id)
        .select_from(passing_documents.join(theirs, true()))
        .where(are_few)
        .cte("tried_chunks")
        .prefix_with("MATERIALIZED")
    )
    return _Tried(counted, passing_chunks, are_few)


def _sifted(
    tables: Tables, shape: SearchShape, are_few: ColumnElement[bool] | None = None
) -> AnySelect:
    """Return the nearest that pass: all are put in order, then asked until enough pass."""
    embeddings = tables.embeddings
    statement = select(embeddings.c.chunk_id, distance_of(tables, shape)).where(
        *are_the_owners(tables)
    )
    if are_few is not None:
        statement = statement.where(not_(are_few))
    # Fenced: what passes is not to be found first.
    in_order = statement.order_by(column("distance"), embeddings.c.chunk_id).offset(FENCE)
    all_of_them = in_order.subquery("all_of_them")
    return nearest(select(all_of_them).where(passes(tables, shape, all_of_them)), shape)


def among(tables: Tables, shape: SearchShape, few: CTE) -> AnySelect:
    """Return the nearest of few, each looked up by its key."""
    embeddings = tables.embeddings
    theirs = (
        select(distance_of(tables, shape))
        .where(*are_the_owners(tables), embeddings.c.chunk_id == few.c.chunk_id)
        .correlate(few)
        .offset(FENCE)
        .lateral("theirs")
    )
    joined = few.join(theirs, true())
    return nearest(select(few.c.chunk_id, theirs.c.distance).select_from(joined), shape)


def nearest(statement: AnySelect, shape: SearchShape) -> AnySelect:
    """Return as many of the nearest as are wanted, in order."""
    return statement.order_by(column("distance"), statement.selected_columns.chunk_id).limit(
        pool(shape)
    )


def are_the_owners(tables: Tables) -> tuple[ColumnElement[bool], ...]:
    """Return that vectors are the owner's, and of the space."""
    embeddings = tables.embeddings
    return (
        owner_is(embeddings),
        embeddings.c.space_id == bindparam("space", type_=SmallInteger),
    )


def distance_of(tables: Tables, shape: SearchShape) -> ColumnElement[Any]:
    """Return a vector's cosine distance to the query's, read from the table."""
    # Without the cast that the HNSW index has: the planner must not take it where all is read.
    distance: ColumnElement[Any] = tables.embeddings.c.embedding.cosine_distance(of_query(shape))
    return distance.label("distance")


def of_query(shape: SearchShape) -> ColumnElement[Any]:
    """Return the query's vector.

    A subquery is run once, where a plan made for any parameter would convert it at every row.
    """
    vector: ColumnElement[Any] = bindparam("embedding", type_=HALFVEC)
    if not shape.takes_vectors:
        # A caller who registered codecs of pgvector's would break a bound vector.
        vector = cast(bindparam("embedding", type_=Text), Text)
    return select(cast(vector, HALFVEC(shape.dimensions))).scalar_subquery()
