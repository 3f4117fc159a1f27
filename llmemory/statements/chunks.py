"""Statements that compare, move and delete the chunks of documents."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Integer,
    Text,
    Update,
    Uuid,
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
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSON, aggregate_order_by

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.parameters import any_of, owner_is, space_is

__all__ = [
    "change_language",
    "delete_chunks",
    "move_chunks",
    "stored_chunks",
]


@lru_cache(maxsize=256)
def stored_chunks(tables: Tables) -> AnySelect:
    """Read which chunks documents have and whether each has a vector in ``space``.

    One row a document with its chunks by column, each packed into one value: a large document has
    more chunks than an event loop should meet as rows. Served by
    ``ix_chunks_owner_id_document_id_position`` and the key of embeddings.
    """
    chunks, embeddings = tables.chunks, tables.embeddings
    has_vector = exists().where(
        owner_is(embeddings),
        embeddings.c.chunk_id == chunks.c.chunk_id,
        space_is(embeddings),
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
        .where(owner_is(chunks), any_of(chunks.c.document_id, "document_ids"))
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
        owner_is(chunks), chunks.c.chunk_id.in_(select(cast(chunk_id, Uuid())))
    )


@lru_cache(maxsize=256)
def change_language(tables: Tables) -> Update:
    """Give the chunks of ``document_ids`` the language of their documents."""
    chunks, documents = tables.chunks, tables.documents
    return (
        update(chunks)
        .values(language=documents.c.language)
        .where(
            owner_is(chunks),
            any_of(chunks.c.document_id, "document_ids"),
            owner_is(documents),
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
            owner_is(chunks),
            chunks.c.chunk_id == given.chunk_id,
            or_(*(chunks.c[name] != given[name] for name in places)),
        )
    )
