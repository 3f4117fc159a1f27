"""What narrows both arms of a search: filters on documents, and what the query rules out."""

from __future__ import annotations

from sqlalchemy import FromClause, and_

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import conditions
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.query_terms import meets_conditions
from llmemory.statements.search.shape import SearchShape

__all__ = ["narrowed"]


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
    has_filters = not shape.filters.is_empty()
    if not has_filters and not shape.has_conditions:
        return statement
    chunks, documents = tables.chunks, tables.documents
    if rows is not chunks:
        statement = statement.join(
            chunks, and_(owner_is(chunks), chunks.c.chunk_id == rows.c.chunk_id)
        )
    if shape.has_conditions:
        statement = statement.where(meets_conditions(tables, shape))
    if has_filters:
        statement = statement.join(
            documents, and_(owner_is(documents), documents.c.document_id == chunks.c.document_id)
        ).where(*conditions(documents, shape.filters, by_index=by_index))
    return statement
