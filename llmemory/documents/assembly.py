"""Documents as objects, for a caller's session to write: what a plan would do, not yet done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event, select
from sqlalchemy.orm import Session, load_only
from sqlalchemy.orm.attributes import flag_modified, set_committed_value
from uuid_utils.compat import uuid7

from llmemory.documents.ingestion import DocumentPlan, token_estimate
from llmemory.errors import ConfigurationError, DocumentNotFoundError
from llmemory.models import DEFAULT_SCHEMA, Chunk, Document, Embedding, EmbeddingJob
from llmemory.types import HalfVectors

__all__ = ["assembled", "options_for", "stored_object"]


def options_for(schema: str) -> dict[str, Any]:
    """Return the execution options by which the models mean the tables of `schema`."""
    if schema == DEFAULT_SCHEMA:
        return {}
    return {"schema_translate_map": {DEFAULT_SCHEMA: schema}}


def stored_object(connection: Connection, schema: str, plan: DocumentPlan) -> Document | None:
    """Return the stored document that `plan` changes, with chunks and jobs, of no session.

    None if it is no longer as the plan takes it to be.
    """
    stored = plan.stored
    assert stored is not None
    key = {"owner_id": plan.document.owner_id, "document_id": stored.document_id}
    options = options_for(schema)
    with Session(connection, join_transaction_mode="rollback_only") as session:
        found = session.scalar(
            select(Document).filter_by(**key).options(load_only(*_LOADED)),
            execution_options=options,
        )
        chunks = session.scalars(
            select(Chunk).filter_by(**key).order_by(Chunk.position).options(load_only(*_PLACES)),
            execution_options=options,
        ).all()
        jobs = session.scalars(
            select(EmbeddingJob).filter_by(**key), execution_options=options
        ).all()
        session.expunge_all()
    if found is None or found.updated_at != stored.updated_at:
        return None
    # Read as text, whatever codec the connection has for JSON.
    set_committed_value(found, "metadata_", stored.metadata)
    if stored.content_hash == plan.document.content_hash:
        set_committed_value(found, "content", plan.document.content)
    set_committed_value(found, "chunks", list(chunks))
    set_committed_value(found, "jobs", list(jobs))
    return found


_LOADED = [
    getattr(Document, attribute.key)
    for attribute in Document.__mapper__.column_attrs
    if attribute.key not in {"content", "metadata_"}
]
_PLACES = [Chunk.position, Chunk.headings, Chunk.start_offset, Chunk.end_offset, Chunk.language]


def assembled(
    plan: DocumentPlan,
    stored: Document | None,
    *,
    schema: str,
    space_id: int,
    vectors: HalfVectors | None,
    rows: Sequence[int],
) -> Document:
    """Return the document as it will be once it is added to a session and flushed.

    Args:
        plan: What is to be done.
        stored: What ``stored_object`` has returned, or None for a new document.
        schema: Where its tables are.
        space_id: Space of the vectors or of the job.
        vectors: One per text that the plan has to embed; None leaves a job.
        rows: Which of them each chunk to embed has.
    """
    document = stored or Document(document_id=plan.document_id, chunks=[], jobs=[])
    _built_for[document] = schema
    if plan.writes_nothing:
        # Without a change the flush would pass it over, and not see that it was deleted meanwhile.
        document.chunk_count = plan.chunk_count
        return document
    now = datetime.now(UTC)
    if stored is None:
        document.created_at = document.updated_at = now
    given = plan.document
    values = {
        "owner_id": given.owner_id,
        "external_id": given.external_id,
        "id_at_origin": given.id_at_origin,
        "document_name": given.document_name,
        "document_type": given.document_type.value,
        "document_date": given.document_date,
        "language": given.language,
        "metadata_": given.metadata,
        "content_hash": given.content_hash,
        "content": given.content,
        "chunk_count": plan.chunk_count,
    }
    for name, value in values.items():
        setattr(document, name, value)
    # Chunks and vectors belong to a version of the document, even where nothing else changes.
    flag_modified(document, "chunk_count")
    if plan.chunks is None:
        return document
    document.chunks = _chunks(plan, document)
    if vectors is None:
        if plan.to_embed_count:
            _queue(document, space_id, now)
        return document
    document.jobs = [job for job in document.jobs if job.space_id != space_id]
    for (position, _), row in zip(plan.to_embed(), rows, strict=True):
        chunk = document.chunks[position]
        chunk.embeddings.append(
            Embedding(
                owner_id=given.owner_id,
                chunk_id=chunk.chunk_id,
                space_id=space_id,
                embedding=vectors[row],
            )
        )
    return document


def _chunks(plan: DocumentPlan, document: Document) -> list[Chunk]:
    planned = plan.chunks
    assert planned is not None
    stored = {chunk.chunk_id: chunk for chunk in document.chunks}
    chunks = []
    for position in range(len(planned)):
        content = plan.content_of(position)
        chunk_id = UUID(bytes=planned.id_of(position))
        chunk = stored.get(chunk_id)
        if chunk is None:
            chunk = Chunk(
                owner_id=plan.document.owner_id,
                chunk_id=chunk_id,
                content=content,
                content_hash=planned.hash_of(position),
                token_count=token_estimate(content.encode()),
                embeddings=[],
            )
        else:
            set_committed_value(chunk, "content", content)
            if planned.want_vectors[position]:
                set_committed_value(chunk, "embeddings", [])
        places = {
            "position": position,
            "headings": planned.headings_of(position),
            "start_offset": planned.starts[position],
            "end_offset": planned.ends[position],
            "language": plan.document.language,
        }
        for name, value in places.items():
            setattr(chunk, name, value)
        chunks.append(chunk)
    return chunks


def _queue(document: Document, space_id: int, now: datetime) -> None:
    job = next((job for job in document.jobs if job.space_id == space_id), None)
    if job is None:
        job = EmbeddingJob(
            owner_id=document.owner_id, job_id=uuid7(), space_id=space_id, created_at=now
        )
        document.jobs.append(job)
    job.state = "queued"
    job.attempts = 0
    job.available_at = now
    job.leased_until = job.last_error = None


_built_for: WeakKeyDictionary[Document, str] = WeakKeyDictionary()


@event.listens_for(Document, "before_update")
def _check_stored(mapper: Any, connection: Connection, document: Document) -> None:
    _check_schema(mapper, connection, document)
    if document not in _built_for:
        return
    key = {"owner_id": document.owner_id, "document_id": document.document_id}
    if connection.execute(select(Document.chunk_count).filter_by(**key)).first() is None:
        raise DocumentNotFoundError(
            "The stored document that a built one replaces was deleted after it was built, by this "
            "transaction or by another. Leave the deletion out, for what is built replaces what "
            "is stored; or delete first, and build with the session that has deleted it, or after "
            "its commit.",
            document_id=str(document.document_id),
        )


@event.listens_for(Document, "before_insert")
def _check_schema(mapper: Any, connection: Connection, document: Document) -> None:
    mapped = connection.get_execution_options().get("schema_translate_map") or {}
    schema = mapped.get(DEFAULT_SCHEMA, DEFAULT_SCHEMA)
    built_for = _built_for.get(document, schema)
    if built_for != schema:
        raise ConfigurationError(
            f"This document was built for the schema {built_for}, and the session writes to "
            f"{schema}. Begin its transaction with "
            "session.connection(execution_options=memory.execution_options)."
        )
