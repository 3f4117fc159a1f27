"""Jobs for the other spaces that want vectors of what a caller's own session writes.

A document is built for one space, maybe long before it is flushed. What other spaces there are by
then is known to the flush alone, so every session is listened to.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.orm import Session, UOWTransaction
from uuid_utils.compat import uuid7

from llmemory.models import DEFAULT_SCHEMA, Chunk, Embedding, EmbeddingJob, tables_for
from llmemory.spaces import read_spaces, spaces_to_feed
from llmemory.statements import jobs as sql
from llmemory.statements.parameters import arrays

__all__: list[str] = []

Key: TypeAlias = tuple[str, UUID]


@event.listens_for(Session, "after_flush")
def _feed(session: Session, context: UOWTransaction) -> None:
    new = [chunk for chunk in session.new if isinstance(chunk, Chunk)]
    spaces_of = _spaces_of(session, new) if new else {}
    if not spaces_of:
        return
    connection = session.connection(bind_arguments={"mapper": Chunk.__mapper__})
    # Of another schema, where the connection translates this one.
    tables = tables_for(DEFAULT_SCHEMA)
    mapped = connection.get_execution_options().get("schema_translate_map") or {}
    schema = mapped.get(DEFAULT_SCHEMA, DEFAULT_SCHEMA)
    spaces = read_spaces(connection, tables)
    wanted: defaultdict[tuple[str, int], list[UUID]] = defaultdict(list)
    for (owner_id, document_id), written in spaces_of.items():
        for own in written:
            for other in spaces_to_feed(spaces, schema, own):
                if other not in written:
                    wanted[owner_id, other].append(document_id)
    for (owner_id, space_id), document_ids in sorted(wanted.items()):
        connection.execute(
            sql.upsert_jobs(tables),
            {
                "owner": owner_id,
                "space": space_id,
                "now": datetime.now(UTC),
                **arrays(
                    job_id=[uuid7() for _ in document_ids],
                    document_id=document_ids,
                ),
            },
        )


def _spaces_of(session: Session, chunks: list[Chunk]) -> dict[Key, set[int]]:
    """Return of each document with new chunks the spaces that its vectors or jobs are for."""
    document_of = {(chunk.owner_id, chunk.chunk_id): chunk.document_id for chunk in chunks}
    documents = {(chunk.owner_id, chunk.document_id) for chunk in chunks}
    found: defaultdict[Key, set[int]] = defaultdict(set)
    for entry in (*session.new, *session.dirty):
        if isinstance(entry, Embedding):
            document_id = document_of.get((entry.owner_id, entry.chunk_id))
            if document_id is not None:
                found[entry.owner_id, document_id].add(entry.space_id)
        elif isinstance(entry, EmbeddingJob) and (entry.owner_id, entry.document_id) in documents:
            found[entry.owner_id, entry.document_id].add(entry.space_id)
    return found
