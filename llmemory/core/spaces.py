"""Changing the model that makes the vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmemory.core.lifecycle import Lifecycle
from llmemory.embedding.base import Embedder, checked_embedder, find_dimensions
from llmemory.embedding.partial import is_about_texts
from llmemory.errors import EmbeddingError, ValidationError
from llmemory.queue.jobs import requeue_jobs
from llmemory.queue.processing import Queue
from llmemory.reembedding.filling import Reembedding
from llmemory.reembedding.removal import SpaceRemoval
from llmemory.spaces import FED, Model, space_status, stored_spaces
from llmemory.types import EmbeddingSpaceStatus, MaintenanceProgress, ReembedResult


class Spaces(Lifecycle):
    """Makes the vectors of another model, and deletes those of former ones."""

    async def reembed(
        self,
        embedder: Embedder | None = None,
        *,
        drop_old: bool = False,
        skip_refused: bool = False,
        on_progress: Callable[[MaintenanceProgress], Any] | None = None,
    ) -> ReembedResult:
        """Make the vectors of another model for all owners, then use them from one moment on.

        Searches go on in the vectors there are, and so does adding. When every chunk has a new
        vector, and large owners their HNSW indexes, one transaction makes the new model the
        default, and this memory uses `embedder` itself. Memories that were made with the former
        embedder search the former vectors for as long as these are there.

        Broken off at any point and called again, by this process or another, it goes on. Of many
        calls at once one works and the others wait. It holds two connections.

        Args:
            embedder: The new one; the memory does not close it. None takes the memory's own, such
                as one that the settings name while the schema still has vectors of another.
            drop_old: Whether to delete the vectors of every other model then, for good.
            skip_refused: Whether to switch although the embedder refuses texts. Their documents
                are found by words, and have failed jobs that say why.
            on_progress: Called at each step, with chunks done and to do.

        Raises:
            TextsRefused: The embedder refused texts; all other vectors were made and are kept.
            EmbeddingError: The embedder failed; the vectors made before are kept.
            ConfigurationError: The role does not own the tables.
            ConflictError: Somebody dropped the new vectors meanwhile.
            StorageError: The database failed; what was done before stays.
        """
        given = self.embedder if embedder is None else checked_embedder(embedder)
        self._database.check_open()
        async with self._opening_alone():
            await self._migrate()
        await find_dimensions(given)
        parts = (self._database, self._tables)
        run = Reembedding(
            *parts, given, self._contexts, self.settings, on_progress, skip_refused=skip_refused
        )
        await run.check_owner()
        filled = await run.run()
        async with self._opening_alone():
            self._embedder, self._model = given, Model(given, filled.space)
        self._indexes.forget()
        # Of what was added meanwhile, or given up before: the run has done most of it in passing.
        async with self._database.transaction() as connection:
            await requeue_jobs(connection, self._tables, space_id=filled.space.space_id)
        queue = Queue(*parts, given, filled.space, self._contexts, self.settings)
        try:
            await queue.drain(None, None)
        except EmbeddingError as error:
            if not (skip_refused and is_about_texts(error)):
                raise
        dropped = 0
        if drop_old:
            async with self._database.connect() as connection:
                spaces = await stored_spaces(connection, self._tables)
            for space in spaces:
                if not (space.is_default or space.state in FED):
                    removal = SpaceRemoval(*parts, self.settings, on_progress)
                    dropped += await removal.drop(space)
        return ReembedResult(
            space_id=filled.space.space_id,
            replaced_space_id=filled.replaced,
            embeddings_created=filled.vectors,
            indexes_built=filled.indexes,
            embeddings_dropped=dropped,
            documents_refused=filled.refused,
        )

    async def list_spaces(self) -> list[EmbeddingSpaceStatus]:
        """Return the models whose vectors the schema has or had, the oldest first.

        It counts the vectors of all owners.

        Raises:
            ConfigurationError: Row level security hides the rows of some owners.
        """
        self._database.check_open()
        async with self._opening_alone():
            await self._migrate()
        await self._check_sees(None)
        async with self._database.connect() as connection:
            return await space_status(connection, self._tables)

    async def drop_space(
        self,
        space_id: int,
        *,
        on_progress: Callable[[MaintenanceProgress], Any] | None = None,
    ) -> int:
        """Delete the vectors of a model that is not the default any more, or not yet.

        From then on, searches and additions with its embedder raise EmbedderMismatchError, in
        memories that are open as well. Vectors are deleted some thousand a transaction. Broken off
        at any point and called again, it goes on.

        Args:
            space_id: Its number, as ``list_spaces`` tells it.
            on_progress: Called at each step, with chunks done and to do.

        Returns:
            How many vectors were deleted.

        Raises:
            ValidationError: There is no such space, or it is the default.
            ConfigurationError: The role does not own the tables.
            ConflictError: ``reembed`` is making its vectors anew.
        """
        self._database.check_open()
        async with self._opening_alone():
            await self._migrate()
        async with self._database.connect() as connection:
            spaces = await stored_spaces(connection, self._tables)
        chosen = next((space for space in spaces if space.space_id == space_id), None)
        if chosen is None:
            raise ValidationError(
                "There is no space of this number; see list_spaces.", field="space_id"
            )
        removal = SpaceRemoval(self._database, self._tables, self.settings, on_progress)
        await removal.check_owner()
        return await removal.drop(chosen)
