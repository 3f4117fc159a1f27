"""Statements that read, write and delete documents."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Integer,
    Table,
    TableValuedAlias,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import BYTEA, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import TypeEngine

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import FilterShape, conditions
from llmemory.statements.jobs import count_jobs
from llmemory.statements.parameters import MOMENT, any_of, given_rows, owner_is, space_is
from llmemory.statements.values import read_json
from llmemory.validation.filters import EVERYTHING

__all__ = [
    "delete_documents",
    "delete_some_documents",
    "delete_statistics",
    "existing_by_external_id",
    "existing_by_id",
    "get_document",
    "insert_documents",
    "list_documents",
    "lock_documents",
    "owner_statistics",
    "set_content",
    "update_documents",
]


_DOCUMENT_TYPES: dict[str, TypeEngine[Any]] = {
    "owner_id": Text(),
    "document_id": Uuid(),
    "external_id": Text(),
    "id_at_origin": Text(),
    "document_name": Text(),
    "document_type": Text(),
    "document_date": MOMENT,
    "language": Text(),
    "metadata": Text(),
    "content_hash": BYTEA(),
    "content": Text(),
    "chunk_count": Integer(),
    "created_at": MOMENT,
    "updated_at": MOMENT,
}


def _value(rows: TableValuedAlias, name: str) -> ColumnElement[Any]:
    # JSON travels as text: a caller's engine may have a codec of its own.
    value: ColumnElement[Any] = rows.c[name]
    return cast(value, JSONB) if name == "metadata" else value


@lru_cache(maxsize=256)
def insert_documents(tables: Tables) -> ReturningInsert[Any]:
    """Insert documents from arrays; one whose external_id exists is left out of what returns."""
    rows = given_rows(_DOCUMENT_TYPES)
    source = select(*(_value(rows, name) for name in _DOCUMENT_TYPES))
    statement = upsert(tables.documents).from_select(list(_DOCUMENT_TYPES), source)
    return statement.on_conflict_do_nothing(index_elements=["owner_id", "external_id"]).returning(
        tables.documents.c.document_id
    )


@lru_cache(maxsize=256)
def update_documents(tables: Tables) -> Update:
    """Update documents of one owner from arrays, all but their keys and creation date."""
    types = {
        name: kind
        for name, kind in _DOCUMENT_TYPES.items()
        if name not in {"owner_id", "created_at"}
    }
    rows = given_rows(types)
    documents = tables.documents
    return (
        update(documents)
        .values({name: _value(rows, name) for name in types if name != "document_id"})
        .where(owner_is(documents), documents.c.document_id == rows.c.document_id)
    )


@lru_cache(maxsize=256)
def set_content(tables: Tables) -> Update:
    """Give ``document`` its ``text``."""
    documents = tables.documents
    return (
        update(documents)
        .values(content=bindparam("text", type_=Text))
        .where(owner_is(documents), documents.c.document_id == bindparam("document", type_=Uuid()))
    )


def _existing(tables: Tables) -> AnySelect:
    column_, jobs = tables.documents.c, tables.embedding_jobs
    is_pending = exists().where(
        owner_is(jobs), jobs.c.document_id == column_.document_id, space_is(jobs)
    )
    return select(
        column_.document_id,
        column_.external_id,
        column_.id_at_origin,
        column_.document_name,
        column_.document_type,
        column_.document_date,
        column_.language,
        read_json(column_.metadata, "metadata"),
        column_.content_hash,
        column_.chunk_count,
        column_.updated_at,
        is_pending.label("is_pending"),
    ).where(owner_is(tables.documents))


@lru_cache(maxsize=256)
def existing_by_external_id(tables: Tables) -> AnySelect:
    """Read an owner's documents by ``external_ids``, through their unique index."""
    return _existing(tables).where(any_of(tables.documents.c.external_id, "external_ids"))


@lru_cache(maxsize=256)
def existing_by_id(tables: Tables) -> AnySelect:
    """Read an owner's documents by ``document_ids``, content included."""
    return (
        _existing(tables)
        .add_columns(tables.documents.c.content)
        .where(any_of(tables.documents.c.document_id, "document_ids"))
    )


@lru_cache(maxsize=256)
def lock_documents(tables: Tables, *, skip_locked: bool = False) -> AnySelect:
    """Lock an owner's documents by ``document_ids``, in one order everywhere."""
    column_ = tables.documents.c
    return (
        select(column_.document_id, column_.updated_at)
        .where(owner_is(tables.documents), any_of(column_.document_id, "document_ids"))
        .order_by(column_.document_id)
        .with_for_update(skip_locked=skip_locked)
    )


def _columns(tables: Tables) -> list[ColumnElement[Any]]:
    return [
        read_json(value, name) if name == "metadata" else value
        for name, value in tables.documents.c.items()
        if name not in {"content", "content_hash"}
    ]


@lru_cache(maxsize=256)
def get_document(tables: Tables) -> AnySelect:
    """Read one document with its content."""
    documents = tables.documents
    return select(*_columns(tables), documents.c.content).where(
        owner_is(documents), documents.c.document_id == bindparam("document_id", type_=Uuid)
    )


@lru_cache(maxsize=512)
def list_documents(tables: Tables, shape: FilterShape) -> AnySelect:
    """Read one page, newest first, beside the number of all: one row even if the page is empty.

    Ids are uuid7, so the key of documents gives the order.
    """
    documents = tables.documents
    where = and_(owner_is(documents), *conditions(documents, shape))
    total = select(func.count().label("total_count")).where(where).subquery("total")
    page = (
        select(*_columns(tables))
        .where(where)
        .order_by(documents.c.document_id.desc())
        .limit(bindparam("limit", type_=BigInteger))
        .offset(bindparam("offset", type_=BigInteger))
        .subquery("page")
    )
    return (
        select(total.c.total_count, *page.c)
        .select_from(total.outerjoin(page, true()))
        .order_by(page.c.document_id.desc())
    )


def _matching(
    documents: Table, shape: FilterShape, by: frozenset[str]
) -> list[ColumnElement[bool]]:
    where = [owner_is(documents), *conditions(documents, shape)]
    if "document_ids" in by:
        where.append(any_of(documents.c.document_id, "document_ids"))
    if "external_ids" in by:
        where.append(any_of(documents.c.external_id, "external_ids"))
    return where


@lru_cache(maxsize=256)
def delete_documents(tables: Tables, shape: FilterShape, by: frozenset[str]) -> Delete:
    """Delete all documents that match.

    Args:
        tables: Where they are.
        shape: Conditions on them.
        by: "document_ids" and "external_ids", where arrays of these are given as well.
    """
    documents = tables.documents
    matching = _matching(documents, shape, by)
    if shape.metadata == EVERYTHING.shape:
        return delete(documents).where(*matching)
    # What metadata is compared as may depend on the time zone: distributed tables allow that in a
    # query within, not in a DELETE itself.
    chosen = select(documents.c.document_id).where(*matching)
    return delete(documents).where(owner_is(documents), documents.c.document_id.in_(chosen))


@lru_cache(maxsize=256)
def delete_some_documents(tables: Tables, shape: FilterShape, by: frozenset[str]) -> Delete:
    """Delete at most ``limit`` documents that match, so that no transaction grows large."""
    documents = tables.documents
    chosen = (
        select(documents.c.document_id)
        .where(*_matching(documents, shape, by))
        .order_by(documents.c.document_id)
        .limit(bindparam("limit", type_=Integer))
    )
    return delete(documents).where(owner_is(documents), documents.c.document_id.in_(chosen))


@lru_cache(maxsize=256)
def delete_statistics(tables: Tables) -> Delete:
    """Delete an owner's lexical statistics."""
    return delete(tables.lexical_statistics).where(owner_is(tables.lexical_statistics))


@lru_cache(maxsize=256)
def owner_statistics(tables: Tables) -> AnySelect:
    """Count what an owner has, by document type, and its jobs, in one statement."""
    documents, embeddings = tables.documents, tables.embeddings
    by_space = (
        select(embeddings.c.space_id, func.count().label("vectors"))
        .where(owner_is(embeddings))
        .group_by(embeddings.c.space_id)
        .subquery("by_space")
    )
    # As text: a caller's engine may have a codec of its own for JSON.
    vectors = select(
        cast(func.json_object_agg(by_space.c.space_id, by_space.c.vectors), Text)
    ).scalar_subquery()
    by_type = (
        select(
            documents.c.document_type,
            func.count().label("documents"),
            func.sum(documents.c.chunk_count).label("chunks"),
            func.sum(func.octet_length(documents.c.content)).label("bytes"),
        )
        .where(owner_is(documents))
        .group_by(documents.c.document_type)
        .subquery("by_type")
    )
    queue = count_jobs(tables, of_owner=True).subquery("queue")
    one = select(vectors.label("vectors"), *queue.c).select_from(queue).subquery("one")
    return select(one, by_type).select_from(one.outerjoin(by_type, true()))
