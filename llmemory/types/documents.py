"""Documents: what is passed to add them, and what is stored."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from llmemory.types.base import Choice, Timestamp, Value


class DocumentType(Choice):
    """What kind of text a document is. MARKDOWN decides how it is split; all can be filtered."""

    EMAIL = "email"
    REPORT = "report"
    BUSINESS_REPORT = "business_report"
    TECHNICAL_DOC = "technical_doc"
    PRESENTATION = "presentation"
    LEGAL_DOCUMENT = "legal_document"
    PDF = "pdf"
    MARKDOWN = "markdown"
    CODE = "code"
    TEXT = "text"
    HTML = "html"
    DOCX = "docx"
    CHAT = "chat"
    GENERAL = "general"


class NewDocument(Value):
    """A document to add in bulk: the arguments of ``add_document`` as one value.

    Lengths and characters are checked when it is added, so that bulk and single adding have one
    set of rules.
    """

    owner_id: str | int | UUID
    document_name: str | None = None
    content: str
    document_type: DocumentType | str = DocumentType.GENERAL
    id_at_origin: str | int | UUID | None = None
    external_id: str | int | UUID | None = None
    additional_metadata: Mapping[str, Any] | None = None
    document_date: datetime | date | str | None = None
    language: str | None = None


class DocumentAddResult(Value):
    """What adding or updating a document did.

    Attributes:
        status: "created"; "replaced" where the content was new; "unchanged" where the content
            was the same, so that nothing was split or embedded (name, type, dates and metadata
            are brought up to date all the same); "failed" where ``add_documents`` was asked to
            collect errors and nothing of the document was stored.
        document_id: Empty where it has failed.
        chunks_created: Chunks the document has now; 0 where it is unchanged.
        embeddings_created: Vectors computed by this call.
        embeddings_queued: Vectors left to ``process_pending_embeddings``.
        processing_time_ms: Milliseconds spent; in bulk, its batch's time shared evenly.
        error: What was wrong, led by the name of the error's class; None unless it has failed.
    """

    document_id: str
    document_name: str
    status: Literal["created", "replaced", "unchanged", "failed"]
    chunks_created: int
    embeddings_created: int
    embeddings_queued: int
    processing_time_ms: float
    error: str | None = None


class Document(Value):
    """A stored document.

    Attributes:
        content: The text as it was added; None in listings.
        chunk_count: Chunks it was split into.
        document_date: The date it carries, with time zone; None if none was given.
    """

    document_id: str
    owner_id: str
    document_name: str
    document_type: DocumentType
    id_at_origin: str | None
    external_id: str | None
    document_date: Timestamp | None
    language: str
    metadata: builtins.dict[str, Any]
    chunk_count: int
    created_at: Timestamp
    updated_at: Timestamp
    content: str | None = None


class DocumentListResult(Value):
    """One page of an owner's documents, newest first.

    Attributes:
        total_count: Documents that match, on all pages.
        has_more: Whether a further page exists.
    """

    documents: list[Document]
    total_count: int
    offset: int
    limit: int
    has_more: bool
