"""Statements that go through the chunks of all owners, page by page.

A page is what lies between two keys, ``after`` and ``last``, so that each statement reads a small
range of the keys of chunks and embeddings, however many rows there are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Integer,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    delete,
    func,
    select,
    text,
    tuple_,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.parameters import space_is

__all__ = [
    "BY_KEYS",
    "WRITERS",
    "delete_jobs_of_space",
    "delete_vectors",
    "has_vectors",
    "missing_chunks",
    "missing_keys",
    "page_end",
]

BY_KEYS = tuple(
    text(f"SET LOCAL enable_{way} = off") for way in ("seqscan", "hashjoin", "mergejoin")
)
"""What goes before statements on a page: the planner takes some of an owner for nothing or all."""

WRITERS = text(
    "SELECT virtualtransaction FROM pg_catalog.pg_locks "
    "WHERE locktype = 'relation' AND relation = to_regclass(:locked_table) "
    "AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) "
    "AND mode = 'RowExclusiveLock' AND granted"
)
"""Transactions that have written to ``locked_table`` and are not over."""


def _key(table: Table) -> ColumnElement[Any]:
    return tuple_(table.c.owner_id, table.c.chunk_id)


def _bound(name: str) -> ColumnElement[Any]:
    return tuple_(bindparam(f"{name}_owner", type_=Text), bindparam(f"{name}_chunk", type_=Uuid()))


def _in_page(table: Table) -> ColumnElement[bool]:
    return and_(_key(table) > _bound("after"), _key(table) <= _bound("last"))


@lru_cache(maxsize=256)
def page_end(tables: Tables) -> AnySelect:
    """Return the key of the ``limit``-th chunk ``after`` a key, or of the last, and how many."""
    chunks = tables.chunks
    page = (
        select(chunks.c.owner_id, chunks.c.chunk_id)
        .where(_key(chunks) > _bound("after"))
        .order_by(chunks.c.owner_id, chunks.c.chunk_id)
        .limit(bindparam("limit", type_=Integer))
        .subquery("page")
    )
    return (
        select(page.c.owner_id, page.c.chunk_id, func.count().over().label("chunks"))
        .order_by(page.c.owner_id.desc(), page.c.chunk_id.desc())
        .limit(1)
    )


@lru_cache(maxsize=256)
def missing_chunks(tables: Tables) -> AnySelect:
    """Read the chunks of a page that have no vector in ``space``, in the order of their keys."""
    chunks, documents = tables.chunks, tables.documents
    return (
        _missing(tables)
        .add_columns(
            chunks.c.document_id,
            chunks.c.position,
            chunks.c.headings,
            chunks.c.content,
            documents.c.document_name,
        )
        .join(
            documents,
            and_(
                documents.c.owner_id == chunks.c.owner_id,
                documents.c.document_id == chunks.c.document_id,
            ),
        )
    )


@lru_cache(maxsize=256)
def missing_keys(tables: Tables) -> AnySelect:
    """Read the keys of the same chunks."""
    return _missing(tables)


def _missing(tables: Tables) -> AnySelect:
    # Each chunk's vector is looked up by its key.
    chunks, embeddings = tables.chunks, tables.embeddings
    has_vector = and_(
        embeddings.c.owner_id == chunks.c.owner_id,
        embeddings.c.chunk_id == chunks.c.chunk_id,
        space_is(embeddings),
    )
    return (
        select(chunks.c.owner_id, chunks.c.chunk_id)
        .select_from(chunks.outerjoin(embeddings, has_vector))
        .where(_in_page(chunks), embeddings.c.chunk_id.is_(None))
        .order_by(chunks.c.owner_id, chunks.c.chunk_id)
    )


@lru_cache(maxsize=256)
def delete_vectors(tables: Tables) -> Delete:
    """Delete the vectors that a page's chunks have in ``space``."""
    embeddings = tables.embeddings
    return delete(embeddings).where(_in_page(embeddings), space_is(embeddings))


@lru_cache(maxsize=256)
def has_vectors(tables: Tables) -> AnySelect:
    """Return a row if there is a vector of ``space``."""
    return select(tables.embeddings.c.space_id).where(space_is(tables.embeddings)).limit(1)


@lru_cache(maxsize=256)
def delete_jobs_of_space(tables: Tables) -> Delete:
    """Delete the jobs for ``space`` of all owners."""
    return delete(tables.embedding_jobs).where(space_is(tables.embedding_jobs))
