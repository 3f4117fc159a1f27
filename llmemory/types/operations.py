"""Operating a memory: its queue, its spaces, its upkeep, and how far they are."""

from __future__ import annotations

import builtins
from typing import Literal, TypeAlias

from pydantic import Field

from llmemory.types.base import Timestamp, Value
from llmemory.types.documents import DocumentType

JobState: TypeAlias = Literal["waiting", "running", "failed"]
"""Where a document is in the queue."""
SpaceState: TypeAlias = Literal["in use", "replaced", "refilling", "filling", "dropped"]
"""What the vectors of a model are there for."""


class QueueStatistics(Value):
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


class EmbeddingJob(Value):
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


class QueueProgress(Value):
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


class OwnerStatistics(Value):
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


class Health(Value):
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
    warnings: list[str] = Field(default_factory=list)


class Progress(Value):
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


class EmbeddingSpaceStatus(Value):
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


class ReembedResult(Value):
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


class MaintenanceProgress(Value):
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


class MaintenanceResult(Value):
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
    tables_analyzed: list[str] = Field(default_factory=list)
    owners_counted: int = 0
    indexes_built: int = 0
    indexes_dropped: int = 0
    owners_left_out: int = 0
