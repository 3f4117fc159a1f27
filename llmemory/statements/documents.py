"""Statements that read, write and delete documents and their chunks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Integer,
    SmallInteger,
    Table,
    TableValuedAlias,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSON, JSONB, TIMESTAMP, aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import TypeEngine

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import FilterShape, conditions
from llmemory.statements.queue import count_jobs
from llmemory.statements.values import read_json
from llmemory.validation.filters import EVERYTHING

__all__ = [
    "arrays",
    "change_language",
    "delete_chunks",
    "delete_documents",
    "delete_jobs",
    "delete_some_documents",
    "delete_statistics",
    "existing_by_external_id",
    "existing_by_id",
    "get_document",
    "insert_documents",
    "list_documents",
    "lock_documents",
    "move_chunks",
    "owner_statistics",
    "set_content",
    "stored_chunks",
    "update_documents",
    "upsert_jobs",
]

_TIMESTAMP = TIMESTAMP(timezone=True)

_DOCUMENT_TYPES: dict[str, TypeEngine[Any]] = {
    "owner_id": Text(),
    "document_id": Uuid(),
    "external_id": Text(),
    "id_at_origin": Text(),
    "document_name": Text(),
    "document_type": Text(),
    "document_date": _TIMESTAMP,
    "language": Text(),
    "metadata": Text(),
    "content_hash": BYTEA(),
    "content": Text(),
    "chunk_count": Integer(),
    "created_at": _TIMESTAMP,
    "updated_at": _TIMESTAMP,
}


def arrays(**values: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return columns' values under the names that statements with arrays bind them by.

    A parameter of a column's own name would be taken for the column in SET.
    """
    return {f"{name}_array": value for name, value in values.items()}


def _owner(table: Table) -> ColumnElement[bool]:
    return table.c.owner_id == bindparam("owner", type_=Text)


def _space(table: Table) -> ColumnElement[bool]:
    return table.c.space_id == bindparam("space", type_=SmallInteger)


def _any(table_column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return table_column == func.any(bindparam(name, type_=ARRAY(table_column.type)))


def _rows(columns: dict[str, TypeEngine[Any]]) -> TableValuedAlias:
    """Return one row per element of the arrays bound by ``arrays``."""
    bound = [bindparam(f"{name}_array", type_=ARRAY(kind)) for name, kind in columns.items()]
    return (
        func.unnest(*bound)
        .table_valued(*(column(name, kind) for name, kind in columns.items()))
        .render_derived(name="given")
    )


def _value(rows: TableValuedAlias, name: str) -> ColumnElement[Any]:
    # JSON travels as text: a caller's engine may have a codec of its own.
    value: ColumnElement[Any] = rows.c[name]
    return cast(value, JSONB) if name == "metadata" else value


@lru_cache(maxsize=256)
def insert_documents(tables: Tables) -> ReturningInsert[Any]:
    """Insert documents from arrays; one whose external_id exists is left out of what returns."""
    rows = _rows(_DOCUMENT_TYPES)
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
    rows = _rows(types)
    documents = tables.documents
    return (
        update(documents)
        .values({name: _value(rows, name) for name in types if name != "document_id"})
        .where(_owner(documents), documents.c.document_id == rows.c.document_id)
    )


@lru_cache(maxsize=256)
def set_content(tables: Tables) -> Update:
    """Give ``document`` its ``text``."""
    documents = tables.documents
    return (
        update(documents)
        .values(content=bindparam("text", type_=Text))
        .where(_owner(documents), documents.c.document_id == bindparam("document", type_=Uuid()))
    )


def _existing(tables: Tables) -> AnySelect:
    column_, jobs = tables.documents.c, tables.embedding_jobs
    is_pending = exists().where(
        _owner(jobs), jobs.c.document_id == column_.document_id, _space(jobs)
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
    ).where(_owner(tables.documents))


@lru_cache(maxsize=256)
def existing_by_external_id(tables: Tables) -> AnySelect:
    """Read an owner's documents by ``external_ids``, through their unique index."""
    return _existing(tables).where(_any(tables.documents.c.external_id, "external_ids"))


@lru_cache(maxsize=256)
def existing_by_id(tables: Tables) -> AnySelect:
    """Read an owner's documents by ``document_ids``, content included."""
    return (
        _existing(tables)
        .add_columns(tables.documents.c.content)
        .where(_any(tables.documents.c.document_id, "document_ids"))
    )


@lru_cache(maxsize=256)
def lock_documents(tables: Tables, *, skip_locked: bool = False) -> AnySelect:
    """Lock an owner's documents by ``document_ids``, in one order everywhere."""
    column_ = tables.documents.c
    return (
        select(column_.document_id, column_.updated_at)
        .where(_owner(tables.documents), _any(column_.document_id, "document_ids"))
        .order_by(column_.document_id)
        .with_for_update(skip_locked=skip_locked)
    )


@lru_cache(maxsize=256)
def stored_chunks(tables: Tables) -> AnySelect:
    """Read which chunks documents have and whether each has a vector in ``space``.

    One row a document with its chunks by column, each packed into one value: a large document has
    more chunks than an event loop should meet as rows. Served by
    ``ix_chunks_owner_id_document_id_position`` and the key of embeddings.
    """
    chunks, embeddings = tables.chunks, tables.embeddings
    has_vector = exists().where(
        _owner(embeddings),
        embeddings.c.chunk_id == chunks.c.chunk_id,
        _space(embeddings),
    )
    one, none = literal(b"\1", BYTEA), literal(b"\0", BYTEA)

    def packed(value: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        in_order = aggregate_order_by(literal(b"", BYTEA), chunks.c.position)
        return func.string_agg(value, in_order, type_=BYTEA).label(name)

    return (
        select(
            chunks.c.document_id,
            packed(func.uuid_send(chunks.c.chunk_id), "ids"),
            packed(chunks.c.content_hash, "hashes"),
            packed(case((has_vector, one), else_=none), "have_vectors"),
        )
        .where(_owner(chunks), _any(chunks.c.document_id, "document_ids"))
        .group_by(chunks.c.document_id)
    )


@lru_cache(maxsize=256)
def delete_chunks(tables: Tables) -> Delete:
    """Delete chunks by ``removed``, their ids packed into one value; vectors go with them."""
    chunks = tables.chunks
    removed = bindparam("removed", type_=BYTEA)
    start = func.generate_series(1, func.length(removed), 16, type_=Integer).column_valued("start")
    chunk_id = func.encode(func.substring(removed, start, 16), "hex")
    return delete(chunks).where(
        _owner(chunks), chunks.c.chunk_id.in_(select(cast(chunk_id, Uuid())))
    )


@lru_cache(maxsize=256)
def change_language(tables: Tables) -> Update:
    """Give the chunks of ``document_ids`` the language of their documents."""
    chunks, documents = tables.chunks, tables.documents
    return (
        update(chunks)
        .values(language=documents.c.language)
        .where(
            _owner(chunks),
            _any(chunks.c.document_id, "document_ids"),
            _owner(documents),
            documents.c.document_id == chunks.c.document_id,
            chunks.c.language != documents.c.language,
        )
    )


@lru_cache(maxsize=256)
def move_chunks(tables: Tables) -> Update:
    """Give kept chunks their new place in the document; unmoved ones stay as they are.

    They come as one JSON value, ``moves``, since an array of arrays must be rectangular and lists
    of headings are not.
    """
    chunks = tables.chunks
    given = (
        func.json_to_recordset(cast(bindparam("moves", type_=Text), JSON))
        .table_valued(
            column("chunk_id", Uuid()),
            column("position", Integer()),
            column("headings", ARRAY(Text())),
            column("start_offset", Integer()),
            column("end_offset", Integer()),
        )
        .render_derived(name="given", with_types=True)
        .c
    )
    # Not the language: the words of the text would be taken apart anew for each chunk.
    places = ("position", "headings", "start_offset", "end_offset")
    return (
        update(chunks)
        .values({name: given[name] for name in places})
        .where(
            _owner(chunks),
            chunks.c.chunk_id == given.chunk_id,
            or_(*(chunks.c[name] != given[name] for name in places)),
        )
    )


@lru_cache(maxsize=256)
def upsert_jobs(tables: Tables) -> Any:
    """Queue documents of one owner, from arrays of job and document ids.

    They count as ``tried`` so often before, 0 if that is not bound.
    """
    rows = _rows({"job_id": Uuid(), "document_id": Uuid()})
    now = bindparam("now", type_=_TIMESTAMP)
    statement = upsert(tables.embedding_jobs).from_select(
        [
            "owner_id",
            "job_id",
            "document_id",
            "space_id",
            "state",
            "attempts",
            "available_at",
            "created_at",
        ],
        select(
            cast(bindparam("owner", type_=Text), Text),
            rows.c.job_id,
            rows.c.document_id,
            cast(bindparam("space", type_=SmallInteger), SmallInteger),
            literal("queued"),
            cast(bindparam("tried", 0, type_=Integer), Integer),
            cast(now, _TIMESTAMP),
            cast(now, _TIMESTAMP),
        ),
    )
    return statement.on_conflict_do_update(
        index_elements=["owner_id", "document_id", "space_id"],
        set_={
            "state": statement.excluded.state,
            "attempts": statement.excluded.attempts,
            "available_at": statement.excluded.available_at,
            "leased_until": None,
            "last_error": None,
        },
    )


@lru_cache(maxsize=256)
def delete_jobs(tables: Tables) -> Delete:
    """Delete the jobs of ``document_ids`` for ``space``: their vectors are made."""
    jobs = tables.embedding_jobs
    return delete(jobs).where(_owner(jobs), _any(jobs.c.document_id, "document_ids"), _space(jobs))


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
        _owner(documents), documents.c.document_id == bindparam("document_id", type_=Uuid)
    )


@lru_cache(maxsize=512)
def list_documents(tables: Tables, shape: FilterShape) -> AnySelect:
    """Read one page, newest first, beside the number of all: one row even if the page is empty.

    Ids are uuid7, so the key of documents gives the order.
    """
    documents = tables.documents
    where = and_(_owner(documents), *conditions(documents, shape))
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
    where = [_owner(documents), *conditions(documents, shape)]
    if "document_ids" in by:
        where.append(_any(documents.c.document_id, "document_ids"))
    if "external_ids" in by:
        where.append(_any(documents.c.external_id, "external_ids"))
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
    return delete(documents).where(_owner(documents), documents.c.document_id.in_(chosen))


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
    return delete(documents).where(_owner(documents), documents.c.document_id.in_(chosen))


@lru_cache(maxsize=256)
def delete_statistics(tables: Tables) -> Delete:
    """Delete an owner's lexical statistics."""
    return delete(tables.lexical_statistics).where(_owner(tables.lexical_statistics))


@lru_cache(maxsize=256)
def owner_statistics(tables: Tables) -> AnySelect:
    """Count what an owner has, by document type, and its jobs, in one statement."""
    documents, embeddings = tables.documents, tables.embeddings
    by_space = (
        select(embeddings.c.space_id, func.count().label("vectors"))
        .where(_owner(embeddings))
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
        .where(_owner(documents))
        .group_by(documents.c.document_type)
        .subquery("by_type")
    )
    queue = count_jobs(tables, of_owner=True).subquery("queue")
    one = select(vectors.label("vectors"), *queue.c).select_from(queue).subquery("one")
    return select(one, by_type).select_from(one.outerjoin(by_type, true()))
