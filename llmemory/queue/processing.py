"""Making the vectors that adding has left for later: one turn of an owner after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio

from llmemory.database.engines import Database
from llmemory.embedding.base import Embedder
from llmemory.embedding.contexts import Contexts
from llmemory.embedding.partial import (
    PartlyEmbedded,
    embed_what_is_possible,
    reason_of,
    shortened,
)
from llmemory.embedding.text import ChunkToEmbed
from llmemory.errors import (
    LLMemoryError,
    ProviderUnavailable,
    StorageError,
    StorageUnavailable,
)
from llmemory.models import Tables
from llmemory.queue.jobs import JOBS_A_CLAIM, Chunk, Claim, Job, Jobs, Settlement, released
from llmemory.settings import Settings
from llmemory.spaces import Model, Space, check_space, hold_space

__all__ = ["Queue", "Turn"]

PORTION_CHARACTERS = 1_000_000
PORTION_CHUNKS = 1000
FIRST_RETRY_S = 10.0
LONGEST_RETRY_S = 3600.0
RENEWALS_A_LEASE = 3
GIVING_BACK_S = 5.0
# Of a call that is to end: an embedder that fails so often in a row fails for every document.
MOST_SETBACKS = 3

_LOCKED = "Another transaction held a lock on the document when its vectors were to be written."
_STOPPED = "The worker ended, or was held up beyond its lease, each time that it worked on this."


@dataclass(frozen=True, slots=True)
class Turn:
    """What was done for one owner before the next one has its turn.

    Attributes:
        finished: The documents that have all their vectors now.
        written: Vectors made.
        failures: Why documents were not finished that were tried, by document.
        error: The first error that was met, if any.
        is_general: Whether it is the embedder's, whichever text it is given.
    """

    owner_id: str
    finished: AbstractSet[UUID] = frozenset()
    written: int = 0
    failures: Mapping[UUID, str] = field(default_factory=dict)
    error: LLMemoryError | None = None
    is_general: bool = False

    @property
    def is_setback(self) -> bool:
        """Whether there was an error and no success."""
        return self.error is not None and not self.written and not self.finished


class Queue:
    """Works on the jobs of one schema and space.

    Those of other spaces belong to workers that have the embedders of these.

    A job is leased in one transaction, embedded outside any, and finished in another: a worker
    that dies leaves a lease that runs out. A turn takes a bounded portion of one owner's chunks,
    however large the documents are and however many wait.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        embedder: Embedder,
        space: Space,
        contexts: Contexts,
        settings: Settings,
    ) -> None:
        self.model = Model(embedder, space)
        self._database = database
        self._tables = tables
        self._contexts = contexts
        self._settings = settings
        self._jobs = Jobs(
            database,
            tables,
            space.space_id,
            lease_s=settings.job_lease_s,
            row_level_security=settings.row_level_security,
        )
        self._portion = max(1, min(PORTION_CHUNKS, PORTION_CHARACTERS // settings.chunk_size))
        self._last_owner: str | None = None
        # Leased still, for the database could not be reached.
        self._unreleased: list[Claim] = []

    async def drain(self, owner_id: str | None, limit: int | None) -> int:
        """Work on due jobs until none is left; return how many documents were finished.

        Raises:
            EmbeddingError: Documents were not finished, which wait to be tried again. All others
                were worked on, unless the embedder does not work at all.
            EmbedderMismatchError: The vectors of the space were dropped.
            StorageError: The database failed.
        """
        finished = setbacks = 0
        unfinished: dict[UUID, LLMemoryError] = {}
        while limit is None or finished < limit:
            room = JOBS_A_CLAIM if limit is None else min(JOBS_A_CLAIM, limit - finished)
            turn = await self.take_turn(owner_id, job_limit=room)
            if turn is None:
                break
            finished += len(turn.finished)
            if turn.error is not None:
                unfinished |= dict.fromkeys(turn.failures, turn.error)
            for document_id in unfinished.keys() & turn.finished:
                del unfinished[document_id]
            setbacks = setbacks + 1 if turn.is_setback else 0
            if setbacks >= MOST_SETBACKS and turn.is_general:
                break
        if unfinished:
            raise next(iter(unfinished.values()))
        return finished

    async def take_turn(
        self, owner_id: str | None = None, *, job_limit: int = JOBS_A_CLAIM
    ) -> Turn | None:
        """Embed a portion of one owner's chunks; return None if no job is due.

        Args:
            owner_id: Whose; None takes one owner after the other.
            job_limit: Most documents to work on.

        Raises:
            EmbedderMismatchError: The vectors of the space were dropped.
            StorageError: The database failed; what was leased is given back later.
        """
        while self._unreleased:
            await self._jobs.release(self._unreleased[-1])
            self._unreleased.pop()
        passed_over: set[str] = set()
        while True:
            owner = await self._next_owner() if owner_id is None else owner_id
            if owner is None or owner in passed_over:
                break
            claim = await self._claim(owner, job_limit)
            if claim is not None:
                return await self._work(claim)
            # Other workers are about to lease what was due.
            passed_over.add(owner)
        async with self._database.connect() as connection:
            await check_space(connection, self._tables, self.model.space)
        return None

    async def _next_owner(self) -> str | None:
        """Return whose turn it is: in order, and at first anyone's, so that no name comes first."""
        if self._last_owner is None:
            owner = await self._jobs.any_owner()
        else:
            owner = await self._jobs.next_owner(self._last_owner) or await self._jobs.next_owner("")
        self._last_owner = owner
        return owner

    async def _claim(self, owner_id: str, job_limit: int) -> Claim | None:
        """Lease jobs; one who is cancelled just then gives them back."""
        claiming = asyncio.ensure_future(
            self._jobs.claim(owner_id, job_limit=job_limit, chunk_limit=self._portion)
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with anyio.move_on_after(GIVING_BACK_S, shield=True), suppress(LLMemoryError):
                if (claim := await claiming) is not None:
                    await self._jobs.release(claim)
            raise

    async def _work(self, claim: Claim) -> Turn:
        spent = [job for job in claim.jobs if job.attempts > self._settings.job_attempts]
        if spent:
            return await self._bury(claim, spent)
        try:
            async with self._kept(claim):
                chunks = await self._jobs.read(
                    claim, limit=self._portion, with_documents=self._contexts.are_made
                )
                made = await self._embed([chunk.text for chunk in chunks])
            return await self._write(claim, chunks, made)
        except StorageUnavailable:
            self._unreleased.append(claim)
            raise
        except StorageError as error:
            reason = reason_of(error)
            await self._fail_all(claim, reason)
            return Turn(
                claim.owner_id, failures=dict.fromkeys(claim.document_ids, reason), error=error
            )
        except BaseException as error:
            # Above all where it was cancelled: others need not wait for the lease to run out.
            with anyio.move_on_after(GIVING_BACK_S, shield=True), suppress(LLMemoryError):
                if isinstance(error, Exception) and not isinstance(error, LLMemoryError):
                    # A mistake of ours, which a document may bring about each time.
                    await self._fail_all(claim, f"It failed ({type(error).__name__}).")
                else:
                    await self._jobs.release(claim)
            raise

    async def _embed(self, chunks: Sequence[ChunkToEmbed]) -> PartlyEmbedded:
        possible = await self._contexts.possible_texts(chunks)
        embedded = await embed_what_is_possible(
            self.model.embedder, possible.texts, batch_size=self._settings.embedding_batch_size
        )
        made = embedded.renumbered(possible.numbers)
        made.errors |= possible.errors
        made.error = made.error or possible.error
        return made

    async def _fail_all(self, claim: Claim, reason: str) -> None:
        failed = {job.job_id: self._failed(job, reason) for job in claim.jobs}
        await self._jobs.give_back(claim, failed)

    async def _bury(self, claim: Claim, spent: Sequence[Job]) -> Turn:
        """Leave jobs as failed whose attempts ended in silence, and give back the others."""
        settlements = {job.job_id: released(job) for job in claim.jobs}
        for job in spent:
            settlements[job.job_id] = Settlement(
                "failed", self._settings.job_attempts, job.available_at, _STOPPED
            )
        await self._jobs.give_back(claim, settlements)
        return Turn(claim.owner_id, failures={job.document_id: _STOPPED for job in spent})

    async def _write(self, claim: Claim, chunks: Sequence[Chunk], made: PartlyEmbedded) -> Turn:
        """Write what was made, finish what is complete, and give back the rest.

        Nothing is written for a document that changed since its chunks were read: of whatever
        their vectors were made, it may be another now.
        """
        read_at = {chunk.document_id: chunk.updated_at for chunk in chunks}
        async with self._database.transaction(owner_id=claim.owner_id) as connection:
            await hold_space(connection, self._tables, self.model.space)
            locked = await self._jobs.lock(connection, claim)
            changed = {
                document_id
                for document_id, updated_at in locked.items()
                if read_at.get(document_id, updated_at) != updated_at
            }
            writable = locked.keys() - changed
            rows = [
                row
                for row, number in enumerate(made.numbers)
                if chunks[number].document_id in writable
            ]
            written = [chunks[made.numbers[row]] for row in rows]
            if written:
                import numpy as np

                await self._jobs.write(
                    connection,
                    claim.owner_id,
                    [chunk.chunk_id for chunk in written],
                    np.concatenate(made.vectors)[rows],
                )
            finished = await self._jobs.finish(connection, claim.owner_id, writable)
            reasons = _reasons(chunks, made)
            progressed = {chunk.document_id for chunk in written}
            settlements: dict[UUID, Settlement] = {}
            for job in claim.jobs:
                document_id = job.document_id
                reason = reasons.get(document_id) if document_id in locked else _LOCKED
                if document_id in progressed:
                    settlements[job.job_id] = Settlement("queued", 0, datetime.now(UTC), reason)
                elif document_id in changed or reason is None:
                    settlements[job.job_id] = released(job)
                else:
                    settlements[job.job_id] = self._failed(job, reason, made.error)
            # Of those that are finished or deleted nothing is left to be settled.
            unfinished = await self._jobs.settle(connection, claim, settlements)
        return Turn(
            claim.owner_id,
            finished=finished,
            written=len(written),
            failures={
                job.document_id: reason
                for job in claim.jobs
                if job.job_id in unfinished and (reason := settlements[job.job_id].reason)
            },
            error=made.error or next(iter(made.errors.values()), None),
            is_general=made.error is not None,
        )

    def _failed(self, job: Job, reason: str, error: LLMemoryError | None = None) -> Settlement:
        """Have `job` tried again after a pause, at random within bounds, or give it up."""
        if job.attempts >= self._settings.job_attempts:
            return Settlement("failed", job.attempts, job.available_at, reason)
        pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (job.attempts - 1))
        pause_s *= random.uniform(0.5, 1.0)
        if isinstance(error, ProviderUnavailable) and error.retry_after_s is not None:
            pause_s = max(pause_s, min(LONGEST_RETRY_S, error.retry_after_s))
        due = datetime.now(UTC) + timedelta(seconds=pause_s)
        return Settlement("queued", job.attempts, due, reason)

    @asynccontextmanager
    async def _kept(self, claim: Claim) -> AsyncIterator[None]:
        """Renew the lease while the block runs, however long that takes."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._settings.job_lease_s / RENEWALS_A_LEASE)
                # Without the database the lease may run out, and then another has the job.
                with suppress(LLMemoryError):
                    await self._jobs.renew(claim)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([renewing])


def _reasons(chunks: Sequence[Chunk], made: PartlyEmbedded) -> dict[UUID, str]:
    """Say for each document that met an error which one, and where."""
    found: dict[UUID, list[int]] = {}
    errors: dict[UUID, LLMemoryError] = {}
    for number, error in made.errors.items():
        chunk = chunks[number]
        errors.setdefault(chunk.document_id, error)
        found.setdefault(chunk.document_id, []).append(chunk.position)
    return {
        document_id: f"{reason_of(error)} Chunks: {shortened(found[document_id])}."
        for document_id, error in errors.items()
    }
