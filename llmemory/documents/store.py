"""Runs statements and turns rows into types. It knows no embedder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any
from uuid import UUID

from sqlalchemy import Delete, Row, RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from llmemory import models
from llmemory.database import binary_copy
from llmemory.database.copying import copy_rows, insert_rows
from llmemory.database.driver_errors import translated_errors
from llmemory.documents.assembly import stored_object
from llmemory.documents.ingestion import DocumentPlan, StoredChunks, StoredDocument
from llmemory.documents.rows import (
    CHUNK_COLUMNS,
    VECTOR_COLUMNS,
    by_owner,
    chunk_rows,
    chunk_values,
    document_arrays,
    ids_to_embed,
    is_long,
    moves,
    vector_values,
)
from llmemory.errors import ConflictError
from llmemory.models import Tables
from llmemory.queue.statistics import queue_statistics, tell_workers
from llmemory.spaces import Space, spaces_to_feed, stored_spaces
from llmemory.statements import chunks as chunks_sql
from llmemory.statements import documents as sql
from llmemory.statements import jobs as jobs_sql
from llmemory.statements.binding import with_values
from llmemory.statements.filters import parameters, shape_of
from llmemory.statements.parameters import arrays
from llmemory.types import (
    Document,
    DocumentListResult,
    HalfVectors,
    OwnerStatistics,
)
from llmemory.validation.filters import Filters

__all__ = ["Store", "stored_document"]

_STORED_FIELDS = [field.name for field in fields(StoredDocument)]
MOVES_A_STATEMENT = 1000
INSERTED_CHUNKS = 50


class Store:
    """The documents of one schema.

    Every method takes a connection, whose transaction is its caller's business.

    Args:
        tables: Of the schema.
        notify: Whether workers are told of new jobs.
        row_level_security: Whether PostgreSQL may refuse to COPY into the tables.
    """

    def __init__(
        self, tables: Tables, *, notify: bool = True, row_level_security: bool = False
    ) -> None:
        self._tables = tables
        self._row_level_security = row_level_security
        self._notify = notify
        self.schema = tables.schema

    async def find(
        self,
        connection: AsyncConnection,
        owner_id: str,
        space_id: int,
        *,
        external_ids: Sequence[str] = (),
        document_ids: Sequence[UUID] = (),
    ) -> list[Row[Any]]:
        """Return the stored documents with these ids; those found by document id with content."""
        values: dict[str, Any] = {"owner": owner_id, "space": space_id}
        if document_ids:
            statement = sql.existing_by_id(self._tables)
            values["document_ids"] = list(document_ids)
        else:
            statement = sql.existing_by_external_id(self._tables)
            values["external_ids"] = list(external_ids)
        with translated_errors():
            return list((await connection.execute(statement, values)).all())

    async def object_of(
        self, connection: AsyncConnection, plan: DocumentPlan
    ) -> models.Document | None:
        """Return the stored document that `plan` changes as an object; None if it has changed."""
        with translated_errors():
            return await connection.run_sync(stored_object, self.schema, plan)

    async def chunks_of(
        self,
        connection: AsyncConnection,
        owner_id: str,
        document_ids: Sequence[UUID],
        space_id: int,
    ) -> dict[UUID, StoredChunks]:
        """Return the stored chunks of each document."""
        values = {"owner": owner_id, "document_ids": list(document_ids), "space": space_id}
        with translated_errors():
            rows = await connection.execute(chunks_sql.stored_chunks(self._tables), values)
        return {
            row.document_id: StoredChunks(row.ids, row.hashes, row.have_vectors) for row in rows
        }

    async def write(
        self,
        connection: AsyncConnection,
        plans: Sequence[DocumentPlan],
        *,
        space: Space,
        vectors: HalfVectors | None,
        rows: Sequence[int],
    ) -> None:
        """Write documents, chunks and vectors, or jobs in place of the vectors.

        Where another space is to have vectors of every chunk, new ones get jobs for it as well.

        Args:
            connection: In a transaction.
            plans: What to write.
            space: Space of the vectors or jobs.
            vectors: One per text that the plans have to embed; None leaves jobs.
            rows: Which of them each chunk to embed has, in the order of the plans.

        Raises:
            ConflictError: A document is not what its plan was made for; nothing must be committed.
            EmbedderMismatchError: The space was dropped; nothing must be committed.
        """
        now = datetime.now(UTC)
        with translated_errors():
            await self._write_documents(connection, plans, now)
            await self._replace_chunks(connection, plans)
            # A statement ran, so that the driver is inside the transaction: COPY may follow.
            if self._are_inserted(plans):
                await insert_rows(connection, self._tables.chunks, chunk_values(plans))
            else:
                await copy_rows(
                    connection,
                    self._tables.chunks,
                    CHUNK_COLUMNS,
                    binary_copy.blocks(chunk_rows(plans)),
                    row_level_security=self._row_level_security,
                )
            spaces = await stored_spaces(connection, self._tables)
            others = spaces_to_feed(spaces, self._tables.schema, space.space_id)
            if vectors is None:
                wanting = [plan for plan in plans if plan.to_embed_count]
                await self._queue(connection, wanting, space.space_id, now)
            else:
                await self._write_vectors(connection, plans, space.space_id, vectors, rows)
            for other in others:
                new = [plan for plan in plans if plan.has_new_chunks]
                await self._queue(connection, new, other, now)

    async def _write_documents(
        self, connection: AsyncConnection, plans: Sequence[DocumentPlan], now: datetime
    ) -> None:
        new = [plan for plan in plans if plan.stored is None]
        if new:
            values = document_arrays(new, now) | arrays(
                created_at=[now] * len(new),
                owner_id=[plan.document.owner_id for plan in new],
            )
            made = await connection.execute(sql.insert_documents(self._tables), values)
            if len(made.all()) != len(new):
                raise ConflictError("Another call added the same external_id; try again.")
        for owner_id, group in by_owner(plan for plan in plans if plan.stored is not None):
            expected = {plan.document_id: plan.stored.updated_at for plan in group if plan.stored}
            locked = await connection.execute(
                sql.lock_documents(self._tables),
                {"owner": owner_id, "document_ids": list(expected)},
            )
            if {row.document_id: row.updated_at for row in locked} != expected:
                raise ConflictError("Another call changed the same document; try again.")
            await connection.execute(
                sql.update_documents(self._tables),
                {"owner": owner_id, **document_arrays(group, now)},
            )
        for document_id, document in ((plan.document_id, plan.document) for plan in plans):
            if is_long(document):
                await connection.execute(
                    sql.set_content(self._tables),
                    {
                        "owner": document.owner_id,
                        "document": document_id,
                        "text": document.content,
                    },
                )

    async def _replace_chunks(
        self, connection: AsyncConnection, plans: Sequence[DocumentPlan]
    ) -> None:
        replaced = (plan for plan in plans if plan.stored is not None and plan.chunks is not None)
        for owner_id, group in by_owner(replaced):
            removed = b"".join(plan.chunks.removed for plan in group if plan.chunks)
            if removed:
                await connection.execute(
                    chunks_sql.delete_chunks(self._tables), {"owner": owner_id, "removed": removed}
                )
            translated = [
                plan.document_id
                for plan in group
                if plan.stored and plan.stored.language != plan.document.language
            ]
            if translated:
                await connection.execute(
                    chunks_sql.change_language(self._tables),
                    {"owner": owner_id, "document_ids": translated},
                )
            moved = moves(group)
            while part := list(islice(moved, MOVES_A_STATEMENT)):
                await connection.execute(
                    chunks_sql.move_chunks(self._tables),
                    {"owner": owner_id, "moves": f"[{','.join(part)}]"},
                )

    async def _write_vectors(
        self,
        connection: AsyncConnection,
        plans: Sequence[DocumentPlan],
        space_id: int,
        vectors: HalfVectors,
        rows: Sequence[int],
    ) -> None:
        groups = []
        start = 0
        for owner_id, group in groupby(plans, key=lambda plan: plan.document.owner_id):
            ids = b"".join(map(ids_to_embed, group))
            end = start + len(ids) // 16
            groups.append(binary_copy.VectorGroup(owner_id, ids, rows[start:end]))
            start = end
        if self._are_inserted(plans):
            values = vector_values(space_id, vectors, groups)
            await insert_rows(connection, self._tables.embeddings, values)
        elif start:
            await copy_rows(
                connection,
                self._tables.embeddings,
                VECTOR_COLUMNS,
                binary_copy.vector_rows(space_id, vectors, groups),
                row_level_security=self._row_level_security,
            )
        for owner_id, embedded in by_owner(
            plan for plan in plans if plan.stored is not None and plan.chunks is not None
        ):
            await connection.execute(
                jobs_sql.delete_jobs(self._tables),
                {
                    "owner": owner_id,
                    "document_ids": [plan.document_id for plan in embedded],
                    "space": space_id,
                },
            )

    def _are_inserted(self, plans: Sequence[DocumentPlan]) -> bool:
        """Return whether COPY would need a temporary table, for too few chunks to be worth it."""
        if not self._row_level_security:
            return False
        return sum(plan.chunk_count for plan in plans) <= INSERTED_CHUNKS

    async def _queue(
        self,
        connection: AsyncConnection,
        plans: Sequence[DocumentPlan],
        space_id: int,
        now: datetime,
    ) -> None:
        waiting = by_owner(plans)
        for owner_id, group in waiting:
            await connection.execute(
                jobs_sql.upsert_jobs(self._tables),
                {
                    "owner": owner_id,
                    "space": space_id,
                    "now": now,
                    **arrays(
                        job_id=[uuid7() for _ in group],
                        document_id=[plan.document_id for plan in group],
                    ),
                },
            )
        if waiting and self._notify:
            await tell_workers(connection, self._tables)

    async def get(
        self, connection: AsyncConnection, owner_id: str, document_id: UUID
    ) -> Document | None:
        """Return a document with its content, or None."""
        with translated_errors():
            result = await connection.execute(
                sql.get_document(self._tables),
                {"owner": owner_id, "document_id": document_id},
            )
        row = result.mappings().first()
        return None if row is None else _document(row)

    async def list(
        self,
        connection: AsyncConnection,
        owner_id: str,
        filters: Filters,
        *,
        limit: int,
        offset: int,
    ) -> DocumentListResult:
        """Return one page of an owner's documents, newest first."""
        values = {
            "owner": owner_id,
            "limit": limit,
            "offset": offset,
            **parameters(filters, owner_id),
        }
        with translated_errors():
            result = await connection.execute(
                sql.list_documents(self._tables, shape_of(filters)), values
            )
        rows = result.mappings().all()
        total = rows[0]["total_count"]
        found = [_document(row) for row in rows if row["document_id"] is not None]
        return DocumentListResult(
            documents=found,
            total_count=total,
            offset=offset,
            limit=limit,
            has_more=offset + len(found) < total,
        )

    async def delete(
        self,
        connection: AsyncConnection,
        owner_id: str,
        filters: Filters,
        *,
        limit: int,
        document_ids: Sequence[UUID] | None = None,
        external_ids: Sequence[str] | None = None,
    ) -> int:
        """Delete at most `limit` documents that match all that is given; return how many."""
        chosen = _chosen(document_ids, external_ids)
        statement = sql.delete_some_documents(self._tables, shape_of(filters), frozenset(chosen))
        values = {"owner": owner_id, "limit": limit, **chosen, **parameters(filters, owner_id)}
        with translated_errors():
            return (await connection.execute(statement, values)).rowcount

    def deletion(
        self,
        owner_id: str,
        filters: Filters,
        document_ids: Sequence[UUID] | None,
        external_ids: Sequence[str] | None,
    ) -> Delete:
        """Return a statement that deletes all documents that match all that is given."""
        chosen = _chosen(document_ids, external_ids)
        statement = sql.delete_documents(self._tables, shape_of(filters), frozenset(chosen))
        return with_values(
            statement, {"owner": owner_id, **chosen, **parameters(filters, owner_id)}
        )

    async def delete_statistics(self, connection: AsyncConnection, owner_id: str) -> None:
        """Delete what is left of an owner without documents."""
        with translated_errors():
            await connection.execute(sql.delete_statistics(self._tables), {"owner": owner_id})

    async def statistics(
        self, connection: AsyncConnection, owner_id: str, space_id: int
    ) -> OwnerStatistics:
        """Return how much an owner has stored."""
        now = datetime.now(UTC)
        values = {"owner": owner_id, "space": space_id, "now": now}
        with translated_errors():
            result = await connection.execute(sql.owner_statistics(self._tables), values)
        rows = result.all()
        queue = queue_statistics(rows[0], now)
        counted = [row for row in rows if row.document_type is not None]
        by_space = {int(key): count for key, count in json.loads(rows[0].vectors or "{}").items()}
        return OwnerStatistics(
            owner_id=owner_id,
            document_count=sum(row.documents for row in counted),
            chunk_count=sum(row.chunks for row in counted),
            embedding_count=by_space.get(space_id, 0),
            embeddings_by_space=by_space,
            pending_embeddings=queue.waiting + queue.running,
            content_bytes=sum(row.bytes for row in counted),
            documents_by_type={row.document_type: row.documents for row in counted},
            queue=queue,
        )


def stored_document(row: Row[Any]) -> StoredDocument:
    """Return a row of ``Store.find`` as a value."""
    return StoredDocument(*(getattr(row, name) for name in _STORED_FIELDS))


def _document(row: RowMapping) -> Document:
    values = {name: row[name] for name in Document.model_fields if name in row}
    return Document(**{**values, "document_id": str(row["document_id"])})


def _chosen(
    document_ids: Sequence[UUID] | None, external_ids: Sequence[str] | None
) -> dict[str, Any]:
    given = {"document_ids": document_ids, "external_ids": external_ids}
    return {name: list(ids) for name, ids in given.items() if ids is not None}
