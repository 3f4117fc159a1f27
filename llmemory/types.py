"""What users pass in and get back: plain values, ready to be returned from a web endpoint."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "Document",
    "DocumentAddResult",
    "DocumentHits",
    "DocumentListResult",
    "DocumentType",
    "EmbeddingJob",
    "EmbeddingSpaceStatus",
    "HalfVectors",
    "Health",
    "MaintenanceProgress",
    "MaintenanceResult",
    "NewDocument",
    "OwnerStatistics",
    "Passage",
    "Progress",
    "QueueProgress",
    "QueueStatistics",
    "ReembedResult",
    "SearchResult",
    "SearchResultWithDocuments",
    "SearchType",
    "SpaceState",
    "Vectors",
]


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vectors: TypeAlias = "NDArray[np.float32]"
"""Embeddings, one a row: shape ``(texts, dimensions)``, or ``(dimensions,)`` for a single one."""

HalfVectors: TypeAlias = "NDArray[np.float16]"
"""Embeddings as they are stored, in half precision; shaped alike."""

Identifier: TypeAlias = str | int | UUID
"""An id of yours; int and UUID become text."""

Moment: TypeAlias = datetime | date | str
"""A point in time; a naive one is UTC, text is ISO 8601."""

Timestamp: TypeAlias = Annotated[datetime, AfterValidator(lambda value: value.astimezone(UTC))]
"""A point in time, in UTC whichever time zone the driver gave it."""


JobState: TypeAlias = Literal["waiting", "running", "failed"]
"""Where a document is in the queue."""
SpaceState: TypeAlias = Literal["in use", "replaced", "refilling", "filling", "dropped"]
"""What the vectors of a model are there for."""


class _Choice(StrEnum):
    """An enumeration that accepts values and names in any case."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if isinstance(value, str):
            wanted = value.strip().lower()
            for member in cls:
                if wanted in (member.value, member.name.lower()):
                    return member
        return None


class DocumentType(_Choice):
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


class SearchType(_Choice):
    """How to search: by meaning, by words, or by both fused."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def dict(self, **options: Any) -> builtins.dict[str, Any]:
        """Return the fields as a dict: ``model_dump`` under its older name."""
        return self.model_dump(**options)


class NewDocument(_Value):
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


class DocumentAddResult(_Value):
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


class Document(_Value):
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


class DocumentListResult(_Value):
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


class SearchResult(_Value):
    """A passage that was found.

    Attributes:
        score: 0 to 1, comparable within one search.
        headings: Markdown headings above the passage, outermost first.
        position: Number of the chunk within its document, from 0.
        start: Offset of its first character in the document's content.
        end: Offset behind its last character.
        similarity: Cosine similarity to the query, -1 to 1; None if the vector arm did not find it.
        lexical_score: BM25 score, 0 or more; None if the word arm did not find it.
        vector_rank: Rank in the vector arm, from 1.
        text_rank: Rank in the word arm, from 1.
        context: The passage with its neighbours, as the document has them; None unless
            ``context_window`` asked for it.
        context_start: Offset of the context's first character in the document's content.
        context_end: Offset behind its last character.
        highlight: The passage as HTML, the query's words in ``<mark>`` and all else escaped; None
            unless ``highlight`` asked for it.
    """

    chunk_id: str
    document_id: str
    document_name: str
    document_type: DocumentType
    content: str
    score: float
    metadata: builtins.dict[str, Any]
    id_at_origin: str | None
    external_id: str | None
    document_date: Timestamp | None
    headings: list[str]
    position: int
    start: int
    end: int
    similarity: float | None
    lexical_score: float | None
    vector_rank: int | None
    text_rank: int | None
    context: str | None = None
    context_start: int | None = None
    context_end: int | None = None
    highlight: str | None = None


class Passage(_Value):
    """A stretch of a document that holds one or more hits, with what surrounds them.

    Attributes:
        content: The document's content from ``start`` to ``end``.
        start: Offset of its first character in the document's content.
        end: Offset behind its last character.
        score: Score of the best hit in it.
    """

    content: str
    start: int
    end: int
    score: float


class DocumentHits(_Value):
    """The hits of one document.

    Attributes:
        score: Score of its best hit.
        results: Its hits, best first.
        passages: The same with their context, in the order of the document: hits that overlap or
            touch are one passage, so that no text is there twice.
    """

    document_id: str
    document_name: str
    document_type: DocumentType
    metadata: builtins.dict[str, Any]
    score: float
    results: list[SearchResult]
    passages: list[Passage] = Field(default_factory=list)


class SearchResultWithDocuments(_Value):
    """Hits, and the same hits grouped by document.

    Attributes:
        results: All hits, best first.
        documents: One entry per document, the one with the best hit first.
    """

    results: list[SearchResult]
    documents: list[DocumentHits]


class QueueStatistics(_Value):
    """How many documents are in the queue for their vectors.

    Attributes:
        waiting: Those that nobody works on: due, or to be tried again later.
        running: Those that a worker has leased.
        failed: Those that were given up; ``requeue_jobs`` has them tried again.
        oldest_s: Seconds since the oldest of those waiting or running came into the queue; None if
            there is none.
    """

    waiting: int = 0
    running: int = 0
    failed: int = 0
    oldest_s: float | None = None


class EmbeddingJob(_Value):
    """A document in the queue for its vectors.

    Attributes:
        space_id: The embedding space that the vectors are for.
        attempts: How often it was tried since it last got on.
        last_error: Why it was not finished; holds no text of the document and no secret.
        created_at: When it came into the queue.
        available_at: When it was or will be due.
    """

    owner_id: str
    document_id: str
    document_name: str
    space_id: int
    state: JobState
    attempts: int
    last_error: str | None
    created_at: Timestamp
    available_at: Timestamp


class QueueProgress(_Value):
    """What a worker has done in one owner's turn.

    Attributes:
        finished: Documents that have all their vectors now.
        embedded: Vectors made.
        failed: Documents that were tried and not finished.
        problem: Why not, of one of them; None if there is none.
    """

    owner_id: str
    finished: int
    embedded: int
    failed: int
    problem: str | None


class OwnerStatistics(_Value):
    """How much an owner has stored.

    Attributes:
        documents_by_type: Number of documents of each type that occurs.
        content_bytes: Size of all contents, in bytes of UTF-8.
        embedding_count: Vectors in the space that this memory searches.
        pending_embeddings: Documents whose vectors in it wait to be made or are being made.
        queue: The same in detail, with those that were given up.
        embeddings_by_space: Vectors in each space that has any, by the ``space_id`` of
            ``list_spaces``: there are several while the model is being changed, and until the
            vectors of the former one are dropped.
    """

    owner_id: str
    document_count: int
    chunk_count: int
    embedding_count: int
    pending_embeddings: int
    content_bytes: int
    embeddings_by_space: builtins.dict[int, int] = Field(default_factory=dict)
    documents_by_type: builtins.dict[DocumentType, int] = Field(default_factory=dict)
    queue: QueueStatistics = Field(default_factory=QueueStatistics)


class Health(_Value):
    """Whether a memory can work.

    Attributes:
        healthy: True if the database answers, its schema is the one the library needs, and its
            vectors are of the embedder in use.
        problem: What is wrong and what to do; None if nothing is.
        embedding_state: What the vectors of the embedder in use are there for: "in use" by
            memories that are made now; "replaced" by those of another model, but searched by
            memories that have this embedder still, and "refilling" when these go back to it;
            "filling" until they are complete; "dropped". None if there are none.
        latency_ms: Milliseconds for one round trip to the database; None if it did not answer.
        queue: Documents of all owners that wait for vectors of the embedder in use; None if they
            could not be counted.
        warnings: What keeps row level security from holding, where it is on or expected.
    """

    healthy: bool
    problem: str | None
    schema_name: str
    revision: str | None
    expected_revision: str
    postgresql_version: str | None
    pgvector_version: str | None
    embedding_model: str | None
    embedding_dimensions: int | None
    embedding_state: SpaceState | None = None
    latency_ms: float | None
    queue: QueueStatistics | None = None
    warnings: list[str] = []


class Progress(_Value):
    """How far a bulk call has come.

    Attributes:
        documents: Documents done with so far, failed ones included.
        chunks: Chunks written so far.
        total: Documents to write, or None where the iterable does not tell.
        failed: Documents that could not be added, where errors are collected.
    """

    documents: int
    chunks: int
    total: int | None
    failed: int = 0


class EmbeddingSpaceStatus(_Value):
    """The vectors of one model, in one schema.

    Attributes:
        space_id: A number that never comes to mean another model.
        provider: Where the model comes from, as the embedder says.
        model: Its name.
        dimensions: Length of the vectors.
        state: "in use" by memories that are made now; "replaced" by another, but searched by
            memories that have the former embedder still; "filling" while ``reembed`` makes the
            vectors, or after it was broken off, and "refilling" where they were complete once and
            are searched; "dropped".
        vectors: Vectors there are.
        missing: Chunks without one.
    """

    space_id: int
    provider: str
    model: str
    dimensions: int
    state: SpaceState
    vectors: int
    missing: int


class ReembedResult(_Value):
    """What ``reembed`` has done.

    Attributes:
        space_id: The space that is the default now.
        replaced_space_id: The one that was until then; None if it was the same.
        embeddings_created: Vectors made by this call.
        indexes_built: HNSW indexes made before the switch.
        embeddings_dropped: Vectors of other models deleted by this call.
        documents_refused: Documents with texts that the embedder refuses; their jobs say why.
    """

    space_id: int
    replaced_space_id: int | None
    embeddings_created: int
    indexes_built: int
    embeddings_dropped: int = 0
    documents_refused: int = 0


class MaintenanceProgress(_Value):
    """How far ``maintain`` or ``reembed`` has come.

    Attributes:
        step: What is being done, such as "building an index".
        subject: Owner, table or index that it is done to.
        done: How many of the step's subjects are done; a fraction while one is under way.
        total: How many there are.
    """

    step: str
    subject: str
    done: float
    total: int


class MaintenanceResult(_Value):
    """What ``maintain`` has done.

    Attributes:
        is_busy: Whether another run was at work on the schema, so that this one did nothing.
        tables_analyzed: Tables whose planner statistics were refreshed.
        owners_counted: Owners whose common words were counted.
        indexes_built: HNSW indexes made, for one owner each.
        indexes_dropped: HNSW indexes dropped: unfinished ones, and those of owners who shrank.
        owners_left_out: Owners large enough for an index who have none for ``hnsw_max_indexes``.
    """

    is_busy: bool = False
    tables_analyzed: list[str] = []
    owners_counted: int = 0
    indexes_built: int = 0
    indexes_dropped: int = 0
    owners_left_out: int = 0
