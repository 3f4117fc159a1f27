"""What narrows both arms of a search: filters on documents, and what the query rules out."""

from __future__ import annotations

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Subquery,
    and_,
    exists,
    literal_column,
    select,
    union_all,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import conditions
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.query_terms import meets_conditions
from llmemory.statements.search.shape import SearchShape, whole

__all__ = ["FENCE", "SAMPLE", "document_passes", "narrowed", "passes", "sample_of"]

# The planner takes no subquery apart that has one: what it makes of estimates that are far off,
# such as those of filters on metadata, would be a join with everything that passes.
FENCE: ColumnElement[int] = literal_column("0")

SAMPLE = 128
"""Chunks that are looked at to guess how many of the owner's a filter leaves."""


def narrowed(
    tables: Tables,
    statement: AnySelect,
    rows: FromClause,
    shape: SearchShape,
    *,
    by_index: bool = True,
) -> AnySelect:
    """Join what the conditions of `shape` need to `statement`, which reads `rows`.

    Args:
        tables: The schema's tables.
        statement: What reads the rows.
        rows: Chunks, or what has their ids.
        shape: The conditions.
        by_index: Whether indexes may serve the filters, or rows are asked one by one.
    """
    if not shape.is_narrowed:
        return statement
    chunks, documents = tables.chunks, tables.documents
    if rows is not chunks:
        statement = statement.join(
            chunks, and_(owner_is(chunks), chunks.c.chunk_id == rows.c.chunk_id)
        )
    if shape.has_conditions:
        statement = statement.where(meets_conditions(tables, shape))
    if shape.has_filters:
        statement = statement.join(
            documents, and_(owner_is(documents), documents.c.document_id == chunks.c.document_id)
        )
        leave_few = shape.passing == "few"
        filters = conditions(documents, shape.filters, by_index=by_index, leave_few=leave_few)
        statement = statement.where(*filters)
    return statement


def passes(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[bool]:
    """Return whether a chunk of `rows` passes, asked of one row after the other."""
    chunks = tables.chunks
    passing: AnySelect = select(literal_column("1")).select_from(chunks)
    passing = narrowed(tables, passing, chunks, shape, by_index=False)
    return exists(
        passing.where(owner_is(chunks), chunks.c.chunk_id == rows.c.chunk_id)
        .correlate(rows)
        .offset(FENCE)
    )


def document_passes(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[bool]:
    """Return whether the document of `rows` passes the filters, asked of one after the other."""
    documents = tables.documents
    return exists(
        select(literal_column("1"))
        .where(
            owner_is(documents),
            documents.c.document_id == rows.c.document_id,
            *conditions(documents, shape.filters, by_index=False),
        )
        .correlate(rows)
        .offset(FENCE)
    )


def sample_of(tables: Tables) -> Subquery:
    """Return the ids of some of the owner's chunks, the same ones twice if these are few.

    Filters are often about time, as are the ids: the oldest and the newest chunks are asked.
    """
    chunks = tables.chunks
    ends = [
        whole(
            select(chunks.c.chunk_id)
            .where(owner_is(chunks))
            .order_by(order)
            .limit(literal_column(str(SAMPLE // 2)))
        )
        for order in (chunks.c.chunk_id.asc(), chunks.c.chunk_id.desc())
    ]
    return union_all(*ends).subquery("sample")
