"""The arm by words: BM25 over the chunks that share a term with the query.

A term is a lexeme of the query, known by its key, a hash of it and the owner, which finds chunks in
the index. A part of the key is its position in the vectors of weights, whose inner product is the
score.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, ColumnElement, func, select

from llmemory.models import Tables
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.candidates import candidates, score_of
from llmemory.statements.search.shape import SearchShape, pool

__all__ = ["lexical_score_of", "text_arm"]


def text_arm(tables: Tables, shape: SearchShape) -> CTE:
    """Return the chunks with the best words: chunk_id, value (the BM25 score), rank."""
    scored = candidates(tables, shape)
    in_order = (scored.c.is_beyond, scored.c.lexical_score.desc(), scored.c.chunk_id)
    return (
        select(
            scored.c.chunk_id,
            scored.c.lexical_score.label("value"),
            func.row_number().over(order_by=in_order).label("rank"),
        )
        .order_by(*in_order)
        .limit(pool(shape))
        .cte("text_arm")
    )


def lexical_score_of(
    tables: Tables, shape: SearchShape, chunk_id: ColumnElement[Any]
) -> ColumnElement[Any]:
    """Return a chunk's BM25 score, 0 if it has none of the query's words; by ``pk_chunks``."""
    chunks = tables.chunks
    return (
        select(score_of(tables, shape, chunks))
        .where(owner_is(chunks), chunks.c.chunk_id == chunk_id)
        .scalar_subquery()
    )
