"""The write path: plan, embed outside any transaction, then write in one."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread

from llmemory import models
from llmemory.database.engines import Database, Session
from llmemory.documents.assembly import assembled
from llmemory.documents.ingestion import (
    DocumentPlan,
)
from llmemory.documents.planner import INLINE_CHARACTERS, Embed, Planned, Planner, Prepared
from llmemory.documents.store import Store
from llmemory.embedding.base import Embedder, concurrency_of, embed_checked
from llmemory.embedding.contexts import Contexts
from llmemory.errors import ConflictError
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.types import DocumentAddResult
from llmemory.validation.documents import CheckedDocument

__all__ = ["Writer"]

ATTEMPTS = 40
FIRST_WAIT_S = 0.002


class Writer:
    """Adds and replaces documents, one or many, by one path.

    Attributes:
        max_concurrency: How many calls of the embedder it has under way at once.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        embedder: Embedder,
        space: Space,
        contexts: Contexts,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._embedder = embedder
        self._space = space
        self._contexts = contexts
        self._settings = settings
        self.planner = Planner(database, store, space, settings, by_document=contexts.are_made)
        self.max_concurrency = concurrency_of(embedder)
        self._turns = anyio.CapacityLimiter(self.max_concurrency)

    async def write(
        self, documents: list[CheckedDocument], *, embed: Embed, session: Session | None = None
    ) -> list[DocumentAddResult]:
        """Write `documents` in one transaction; return one result each, in order.

        Args:
            documents: No two with the same owner and external_id.
            embed: "now", or "later" to leave jobs.
            session: The caller's transaction to join.

        Raises:
            ConflictError: Concurrent changes won every time, or once within the caller's
                transaction, which only the caller can begin anew.
        """
        planned = await self.planner.plan(documents, embed=embed, session=session)
        prepared = await self.embed(planned, embed=embed)
        return await self.commit(prepared, embed=embed, session=session)

    async def update(
        self,
        owner_id: str,
        document_id: UUID,
        changes: Mapping[str, Any],
        *,
        embed: Embed,
        session: Session | None,
    ) -> DocumentAddResult:
        """Change what `changes` names of one document, by the names of ``add_document``.

        Raises:
            DocumentNotFoundError: The owner has no such document.
            ValidationError: A new value may not be stored.
        """
        started = time.perf_counter()
        attempt = 0
        before: Prepared | None = None
        while True:
            attempt += 1
            planned = await self.planner.plan_stored(
                changes, owner_id, document_id, embed=embed, session=session, before=before
            )
            planned.started = started
            before = prepared = await self.embed(planned, embed=embed)
            if await self._is_written(prepared, session, attempt):
                return prepared.results(embed)[0]

    async def build(
        self,
        given: Mapping[str, Any],
        *,
        embed: Embed,
        session: Session | None,
        document_id: UUID | None,
    ) -> models.Document:
        """Return what ``write`` would do for one document as an object, and write nothing.

        Args:
            given: The arguments of ``add_document``.
            embed: "now", or "later" to attach a job.
            session: The caller's transaction to read in what is stored.
            document_id: The document that it replaces, if that is not told by its external_id.

        Raises:
            ConflictError: Others changed the document again and again.
            DocumentNotFoundError: The owner has no document of this id.
            ValidationError: A value may not be stored.
        """
        document = await self.planner.check(given)
        if document.external_id is None:
            # Named by its id, a document keeps its key.
            given = {name: value for name, value in given.items() if name != "external_id"}
        before: Prepared | None = None
        for _ in range(ATTEMPTS):
            if document_id is None:
                planned = await self.planner.plan(
                    [document], embed=embed, session=session, before=before
                )
            else:
                planned = await self.planner.plan_stored(
                    given,
                    document.owner_id,
                    document_id,
                    embed=embed,
                    session=session,
                    before=before,
                )
            before = prepared = await self.embed(planned, embed=embed)
            (plan,) = prepared.plans
            stored = None
            if plan.stored is not None:
                async with self._database.connect(
                    session, owner_id=document.owner_id
                ) as connection:
                    stored = await self._store.object_of(connection, plan)
                if stored is None:
                    continue
            assemble = partial(
                assembled,
                plan,
                stored,
                schema=self._store.schema,
                space_id=self._space.space_id,
                vectors=prepared.vectors,
                rows=prepared.rows,
            )
            if len(document.content) > INLINE_CHARACTERS:
                return await anyio.to_thread.run_sync(assemble)
            return assemble()
        raise ConflictError("Others change this document all the time; try again.")

    def calls_of(self, planned: Planned, *, embed: Embed) -> int:
        """Return how often the embedder is called for what is planned."""
        if embed == "later":
            return 0
        return -(-len(planned.texts.new) // self._settings.embedding_batch_size)

    async def embed(self, planned: Planned, *, embed: Embed) -> Prepared:
        """Make the vectors of what is planned, or none where they are left for later.

        Raises:
            EmbeddingError: The embedder failed.
        """
        if embed == "later":
            return planned.prepared(None)
        vectors = await embed_checked(
            self._embedder,
            await self._contexts.texts(planned.texts.new),
            purpose="document",
            batch_size=self._settings.embedding_batch_size,
            turns=self._turns,
        )
        if planned.known is not None:
            import numpy as np

            vectors = np.concatenate([planned.known, vectors])
        return planned.prepared(vectors)

    async def commit(
        self, prepared: Prepared, *, embed: Embed, session: Session | None = None
    ) -> list[DocumentAddResult]:
        """Write what is prepared in one transaction, planned anew where another call came first.

        Raises:
            ConflictError: Concurrent changes won every time.
        """
        attempt = 1
        while not await self._is_written(prepared, session, attempt):
            attempt += 1
            planned = await self.planner.plan(
                prepared.documents, embed=embed, session=session, before=prepared
            )
            prepared = await self.embed(planned, embed=embed)
        return prepared.results(embed)

    async def _is_written(self, prepared: Prepared, session: Session | None, attempt: int) -> bool:
        """Write; return False where what it was planned for has changed, to be planned anew."""
        plans = [plan for plan in prepared.plans if not plan.writes_nothing]
        if not plans:
            return True
        try:
            async with self._database.transaction(session) as connection:
                for part, rows in self._parts(plans, prepared.rows):
                    await self._database.writing(connection, part[0].document.owner_id)
                    await self._store.write(
                        connection,
                        part,
                        space=self._space,
                        vectors=prepared.vectors,
                        rows=rows,
                    )
        except ConflictError:
            # A caller's transaction has failed as a whole: only the caller can begin it anew.
            if session is not None or attempt == ATTEMPTS:
                raise
            # Of several writers one gets through each time; waiting at random keeps them apart.
            await anyio.sleep(random.uniform(0, min(1.0, FIRST_WAIT_S * 2**attempt)))
            return False
        return True

    def _parts(
        self, plans: list[DocumentPlan], rows: Sequence[int]
    ) -> Sequence[tuple[list[DocumentPlan], Sequence[int]]]:
        """Return what is written at once: all, or where policies ask whose it is, an owner's."""
        if not self._settings.row_level_security:
            return [(plans, rows)]
        parts: defaultdict[str, tuple[list[DocumentPlan], list[int]]] = defaultdict(
            lambda: ([], [])
        )
        start = 0
        for plan in plans:
            part, rows_of_part = parts[plan.document.owner_id]
            part.append(plan)
            end = start + plan.to_embed_count
            rows_of_part.extend(rows[start:end])
            start = end
        # In one order everywhere, or two calls could wait for each other's locks.
        return [parts[owner_id] for owner_id in sorted(parts)]
