"""Work that is done beside adding and searching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args
from uuid import UUID

from llmemory.core.lifecycle import Lifecycle
from llmemory.embedding.base import find_dimensions
from llmemory.errors import ValidationError
from llmemory.health import check_health
from llmemory.maintenance import Maintenance
from llmemory.queue.jobs import list_jobs, requeue_jobs
from llmemory.queue.processing import Queue
from llmemory.queue.statistics import tell_workers
from llmemory.queue.worker import Worker
from llmemory.types import (
    EmbeddingJob,
    Health,
    Identifier,
    JobState,
    MaintenanceProgress,
    MaintenanceResult,
    QueueProgress,
)
from llmemory.validation.searches import checked_page
from llmemory.validation.values import checked_count, checked_document_ids, checked_identifier


class Upkeep(Lifecycle):
    """Keeps vectors, indexes and statistics up to date."""

    async def process_pending_embeddings(
        self, owner_id: Identifier | None = None, *, limit: int | None = None
    ) -> int:
        """Make the vectors that adding with ``embed="later"`` has left, until none are due.

        Any number of processes may call it at once; each document is worked on by one of them.

        Args:
            owner_id: Only this owner's documents; None takes all owners in turn.
            limit: Documents to finish at most, 1 or more; None means all.

        Returns:
            How many documents were finished.

        Raises:
            EmbeddingError: Some documents were not finished, while all others were, unless the
                embedder does not work at all. They are tried again later, and left as failed after
                ``job_attempts``.
            EmbedderMismatchError: The vectors of this embedder were dropped.
            StorageError: The database failed.
        """
        owner = self._checked_owner(owner_id)
        at_most = None if limit is None else checked_count(limit, "limit")
        queue = await self._queue()
        await self._check_sees(owner)
        return await queue.drain(owner, at_most)

    async def run_worker(
        self,
        owner_id: Identifier | None = None,
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[QueueProgress], Any] | None = None,
    ) -> int:
        """Make the vectors that adding has left for later, as they come, until told to stop.

        Any number of workers may run at once, in any number of processes. Each owner has a turn
        after the other, of some hundred chunks, so that one with much to do keeps no other waiting.
        While the database or the embedder fails, the worker waits and tries again. Cancelled, it
        gives back at once what it was working on. After ``reembed`` of this memory it goes on with
        the new model; after another's, with the former one, for whoever has that still.

        Args:
            owner_id: Only this owner's documents; None takes all owners in turn.
            should_stop: Asked between turns, and often while there is nothing to do, such as
                ``threading.Event().is_set``; once it says True, the worker ends. None works until
                cancelled.
            on_progress: Called after each turn.

        Returns:
            How many documents were finished.

        Raises:
            LLMemoryError: What trying again does not mend: the database cannot be reached at the
                start, the memory was closed, the login is refused, the tables are gone, the
                vectors of its embedder were dropped.
        """
        owner = self._checked_owner(owner_id)
        queue = await self._queue()
        await self._check_sees(owner)
        worker = Worker(
            queue,
            self._queue,
            self._database,
            self.schema,
            self.settings,
            should_stop=should_stop,
            on_progress=on_progress,
        )
        return await worker.run(owner)

    async def list_jobs(
        self,
        owner_id: Identifier | None = None,
        *,
        state: JobState | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[EmbeddingJob]:
        """Return documents that are in the queue for their vectors, the oldest first.

        Args:
            owner_id: Only this owner's documents; None takes those of all owners.
            state: Only those "waiting", "running" or "failed".
            limit: Documents wanted.
            offset: Documents to skip.

        Raises:
            ValidationError: An argument is out of range.
        """
        owner = self._checked_owner(owner_id)
        if state is not None and state not in get_args(JobState):
            raise ValidationError(
                f"state must be one of {', '.join(get_args(JobState))}.", field="state"
            )
        wanted, skipped = checked_page(limit, offset, self.settings)
        await self._open()
        await self._check_sees(owner)
        async with self._database.connect(owner_id=owner) as connection:
            return await list_jobs(
                connection, self._tables, owner_id=owner, state=state, limit=wanted, offset=skipped
            )

    async def requeue_jobs(
        self,
        owner_id: Identifier | None = None,
        *,
        document_ids: Sequence[str | UUID] | None = None,
    ) -> int:
        """Have documents tried again that were given up, with all their attempts.

        Args:
            owner_id: Only this owner's documents; None takes those of all owners.
            document_ids: Only these.

        Returns:
            How many there were.
        """
        owner = self._checked_owner(owner_id)
        chosen = checked_document_ids(document_ids)
        await self._open()
        await self._check_sees(owner)
        async with self._database.transaction(owner_id=owner) as connection:
            count = await requeue_jobs(
                connection, self._tables, owner_id=owner, document_ids=chosen
            )
            if count and self.settings.job_notify:
                await tell_workers(connection, self._tables)
        return count

    async def maintain(
        self, on_progress: Callable[[MaintenanceProgress], Any] | None = None
    ) -> MaintenanceResult:
        """Do the upkeep that is due: HNSW indexes, counts of words, planner statistics.

        Searches are right without it. Call it after bulk loads and now and then, such as once a
        night. Reading and writing go on meanwhile. Of many calls at once, one works and the
        others return. Stopped at any point and called again, it goes on.

        Args:
            on_progress: Called at each step, and while an index is built.

        Raises:
            ConfigurationError: The role does not own the tables, or row level security hides their
                rows from it.
            StorageError: The database failed; what was done before stays.
        """
        await self._open()
        upkeep = Maintenance(self._database, self._tables, self.settings, on_progress)
        try:
            return await upkeep.run()
        finally:
            self._indexes.forget()

    async def health(self) -> Health:
        """Return whether the database answers, and schema and vectors fit; nothing is raised.

        It counts the jobs of all owners, at some 20 ms for 100,000.

        Raises:
            ConfigurationError: The model of a local embedder cannot be loaded.
            ClosedError: ``close`` was called.
        """
        await find_dimensions(self.embedder)
        return await check_health(self._database, self._tables, self.embedder, self.settings)

    async def _queue(self, former: Queue | None = None) -> Queue:
        """Return `former` if it has the memory's model still, else a queue that has it."""
        model = await self._open()
        if former is not None and former.model == model:
            return former
        return Queue(self._database, self._tables, *model, self._contexts, self.settings)

    def _checked_owner(self, owner_id: Identifier | None) -> str | None:
        if owner_id is None:
            return None
        return checked_identifier(owner_id, "owner_id", self.settings)
