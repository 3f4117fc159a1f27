"""The whole search: arms, fusion, one page of it, and the documents of the hits."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import BigInteger, Subquery, and_, bindparam, column, select

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.search.fusion import fused, single
from llmemory.statements.search.shape import SearchShape, owner_is
from llmemory.statements.search.vectors import vector_arm
from llmemory.statements.search.words import text_arm
from llmemory.types import SearchType

__all__ = ["search"]


@lru_cache(maxsize=4096)
def search(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return the search of `shape`.

    Binds ``owner``, ``limit``, ``offset`` and the filters; with a vector arm ``space`` and
    ``embedding`` (the vector as text); with a word arm ``query_text`` and ``language`` if given;
    with both ``alpha``, the vector arm's weight, ``pool``, the hits of each arm, and
    ``candidates``, how many of them are ranked.

    Served by the key of embeddings (vector arm) and by ``ix_chunks_search_vector`` or the key of
    chunks (word arm), then by the keys of chunks and documents for the hits.
    """
    if shape.search_type is SearchType.HYBRID:
        found = fused(tables, shape, vector_arm(tables, shape), text_arm(tables, shape))
    elif shape.search_type is SearchType.VECTOR:
        found = single(vector_arm(tables, shape), shape.search_type)
    else:
        found = single(text_arm(tables, shape), shape.search_type)
    page = (
        found.order_by(column("score").desc(), column("best_rank"), column("chunk_id"))
        .limit(bindparam("limit", type_=BigInteger))
        .offset(bindparam("offset", type_=BigInteger))
        .subquery("page")
    )
    return with_documents(tables, page)


def with_documents(tables: Tables, page: Subquery) -> AnySelect:
    chunks, documents = tables.chunks, tables.documents
    return (
        select(
            page.c.chunk_id,
            page.c.score,
            page.c.similarity,
            page.c.lexical_score,
            page.c.vector_rank,
            page.c.text_rank,
            chunks.c.content,
            chunks.c.headings,
            chunks.c.position,
            chunks.c.start_offset,
            chunks.c.end_offset,
            documents.c.document_id,
            documents.c.document_name,
            documents.c.document_type,
            documents.c.metadata,
            documents.c.id_at_origin,
            documents.c.external_id,
            documents.c.document_date,
        )
        .select_from(page)
        .join(chunks, and_(owner_is(chunks), chunks.c.chunk_id == page.c.chunk_id))
        .join(
            documents,
            and_(owner_is(documents), documents.c.document_id == chunks.c.document_id),
        )
        .order_by(page.c.score.desc(), page.c.best_rank, page.c.chunk_id)
    )
