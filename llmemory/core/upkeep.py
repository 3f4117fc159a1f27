"""Work that is done beside adding and searching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmemory.core.lifecycle import Lifecycle
from llmemory.errors import ValidationError
from llmemory.health import check_health
from llmemory.maintenance import Maintenance
from llmemory.queue import Queue
from llmemory.types import Health, Identifier, MaintenanceProgress, MaintenanceResult
from llmemory.validation import checked_identifier


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
            EmbeddingError: The embedder failed. The documents are tried again later, and left as
                failed after ``job_attempts``.
        """
        owner = None
        if owner_id is not None:
            owner = checked_identifier(owner_id, "owner_id", self.settings)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValidationError("limit must be 1 or more, or None.", field="limit")
        space = await self._open()
        queue = Queue(self._database, self._tables, self.embedder, space, self.settings)
        return await queue.drain(owner, limit)

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
            ConfigurationError: The role does not own the tables.
            StorageError: The database failed; what was done before stays.
        """
        await self._open()
        upkeep = Maintenance(self._database, self._tables, self.settings, on_progress)
        try:
            return await upkeep.run()
        finally:
            self._indexes.forget()

    async def health(self) -> Health:
        """Return whether the database answers and the schema fits; problems do not raise.

        Raises:
            ClosedError: ``close`` was called.
        """
        return await check_health(self._database, self.schema, self.embedder)
