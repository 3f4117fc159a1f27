"""What narrows both arms of a search: filters on documents, and what the query rules out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Subquery,
    Table,
    and_,
    exists,
    literal_column,
    select,
    union_all,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import conditions, row_conditions
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
    tables: Tables, statement: AnySelect, rows: FromClause, shape: SearchShape
) -> AnySelect:
    """Join what the conditions of `shape` need to `statement`, which reads `rows`.

    Args:
        tables: The schema's tables.
        statement: What reads the rows.
        rows: Chunks, or what has their ids.
        shape: The conditions.
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
        leave_few = (shape.index is None and not shape.is_large) or shape.passing == "few"
        statement = statement.join(
            documents, and_(owner_is(documents), documents.c.document_id == chunks.c.document_id)
        ).where(*conditions(documents, shape.filters, leave_few=leave_few))
    return statement


def passes(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[bool]:
    """Return whether a chunk of `rows` passes, asked of one row after the other."""
    chunks, documents = tables.chunks, tables.documents
    its_own = select(*_filtered(documents, shape)).select_from(chunks)
    if shape.has_conditions:
        its_own = its_own.where(meets_conditions(tables, shape))
    if shape.has_filters:
        its_own = its_own.join(
            documents, and_(owner_is(documents), documents.c.document_id == chunks.c.document_id)
        )
    its_own = its_own.where(owner_is(chunks), chunks.c.chunk_id == rows.c.chunk_id)
    return _one_passes(its_own.correlate(rows), shape)


def document_passes(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[bool]:
    """Return whether the document of `rows` passes the filters, asked of one after the other."""
    documents = tables.documents
    its_own = select(*_filtered(documents, shape)).where(
        owner_is(documents), documents.c.document_id == rows.c.document_id
    )
    return _one_passes(its_own.correlate(rows), shape)


def _filtered(documents: Table, shape: SearchShape) -> tuple[ColumnElement[Any], ...]:
    """Return the columns that filters look at, or what is there without them."""
    column = documents.c
    looked_at = (column.document_type, column.id_at_origin, column.document_date, column.metadata)
    return looked_at if shape.has_filters else (literal_column("1").label("one"),)


def _one_passes(its_own: AnySelect, shape: SearchShape) -> ColumnElement[bool]:
    # Fenced: it is found by its key, and not among all that pass.
    row = its_own.offset(FENCE).subquery("row")
    statement: AnySelect = select(literal_column("1")).select_from(row)
    return exists(statement.where(*row_conditions(row, shape.filters)))


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
