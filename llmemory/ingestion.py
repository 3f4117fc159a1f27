"""Deciding what a write has to do: what is new, what is kept, what must be embedded. Pure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from uuid_utils.compat import uuid7

from llmemory.chunking import Piece, split
from llmemory.settings import Settings
from llmemory.types import DocumentType
from llmemory.validation import CheckedDocument

__all__ = ["DocumentPlan", "PlannedChunk", "StoredChunk", "StoredDocument", "plan_document"]


Status: TypeAlias = Literal["created", "replaced", "unchanged"]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it is in the database, without its content.

    Attributes:
        updated_at: Tells whether it was changed since it was read.
        is_pending: Whether vectors of it are still to be made.
    """

    document_id: UUID
    external_id: str | None
    id_at_origin: str | None
    document_name: str
    document_type: str
    document_date: datetime | None
    language: str
    metadata: dict[str, Any]
    content_hash: bytes
    chunk_count: int
    updated_at: datetime
    is_pending: bool


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as it is in the database.

    Attributes:
        has_vector: Whether it has one in the space that is written to.
    """

    document_id: UUID
    chunk_id: UUID
    content_hash: bytes
    has_vector: bool


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk as it will be.

    Attributes:
        stored: The stored chunk of the same text that it takes over, if any.
    """

    chunk_id: UUID
    piece: Piece
    content_hash: bytes
    stored: StoredChunk | None

    @property
    def needs_vector(self) -> bool:
        """Whether its text must be embedded."""
        return self.stored is None or not self.stored.has_vector


@dataclass(frozen=True, slots=True)
class DocumentPlan:
    """What a write does for one document.

    Attributes:
        stored: What it replaces; the write fails if that has changed in between.
        status: What will have happened.
        chunks: All of its chunks in order; None if they stay as they are.
    """

    document: CheckedDocument
    document_id: UUID
    stored: StoredDocument | None
    status: Status
    chunks: list[PlannedChunk] | None

    @property
    def chunk_count(self) -> int:
        """How many chunks the document has afterwards."""
        if self.chunks is not None:
            return len(self.chunks)
        return self.stored.chunk_count if self.stored is not None else 0

    @property
    def writes_nothing(self) -> bool:
        """Whether the database already holds all of it."""
        stored, document = self.stored, self.document
        return (
            self.chunks is None
            and stored is not None
            and stored.external_id == document.external_id
            and stored.id_at_origin == document.id_at_origin
            and stored.document_name == document.document_name
            and stored.document_type == document.document_type.value
            and stored.document_date == document.document_date
            and stored.metadata == document.metadata
        )

    def to_embed(self) -> list[PlannedChunk]:
        """Return the chunks whose texts must be embedded."""
        return [chunk for chunk in self.chunks or () if chunk.needs_vector]


def is_unchanged(document: CheckedDocument, stored: StoredDocument) -> bool:
    """Return whether splitting `document` would give the chunks that are stored."""
    return (
        stored.content_hash == document.content_hash
        and stored.language == document.language
        and _splitting_rules(stored.document_type) == _splitting_rules(document.document_type)
    )


def plan_document(
    document: CheckedDocument,
    settings: Settings,
    stored: StoredDocument | None = None,
    stored_chunks: Sequence[StoredChunk] = (),
) -> DocumentPlan:
    """Split `document` and find out which of its chunks are stored already.

    An unchanged document is left alone, unless its chunks are given: then they are looked through
    for those that have no vector yet. A chunk whose text occurs among the stored ones takes over
    that chunk with its vector, so that only changed passages are embedded.
    """
    if stored is not None and not stored_chunks and is_unchanged(document, stored):
        return DocumentPlan(document, stored.document_id, stored, "unchanged", None)
    reusable: defaultdict[bytes, list[StoredChunk]] = defaultdict(list)
    for chunk in stored_chunks:
        reusable[chunk.content_hash].append(chunk)
    chunks = []
    for piece in split(
        document.content,
        document.document_type,
        chunk_size=settings.chunk_size,
        chunk_overlap=settings.chunk_overlap,
    ):
        digest = hashlib.sha256(piece.content.encode()).digest()
        same = reusable[digest].pop(0) if reusable.get(digest) else None
        chunks.append(PlannedChunk(same.chunk_id if same else uuid7(), piece, digest, same))
    if stored is None:
        return DocumentPlan(document, uuid7(), None, "created", chunks)
    status: Status = "unchanged" if is_unchanged(document, stored) else "replaced"
    return DocumentPlan(document, stored.document_id, stored, status, chunks)


def _splitting_rules(document_type: str) -> str:
    return document_type if document_type in {DocumentType.MARKDOWN, DocumentType.CODE} else ""
