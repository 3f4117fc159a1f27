"""The jobs of one schema and space: leased, renewed, finished and given back. No embedder here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database import binary_copy
from llmemory.database.copying import copy_rows
from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.embedding.text import ChunkToEmbed
from llmemory.models import Tables
from llmemory.statements import documents as documents_sql
from llmemory.statements import jobs as jobs_sql
from llmemory.statements import queue as sql
from llmemory.types import EmbeddingJob, HalfVectors, JobState

__all__ = [
    "JOBS_A_CLAIM",
    "Chunk",
    "Claim",
    "Job",
    "Jobs",
    "Settlement",
    "list_jobs",
    "released",
    "requeue_jobs",
]

JOBS_A_CLAIM = 128


@dataclass(frozen=True, slots=True)
class Job:
    """A leased job.

    Attributes:
        attempts: With this one.
        available_at: When it became due: with `attempts`, what tells this lease from others.
        chunk_count: Chunks of its document, with and without vectors.
    """

    job_id: UUID
    document_id: UUID
    attempts: int
    available_at: datetime
    chunk_count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Leased jobs of one owner."""

    owner_id: str
    jobs: Sequence[Job]

    @property
    def document_ids(self) -> list[UUID]:
        """The documents that are worked on."""
        return [job.document_id for job in self.jobs]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that has no vector.

    Attributes:
        text: What it is embedded as, with what it stands in.
        updated_at: When its document was last changed.
    """

    document_id: UUID
    chunk_id: UUID
    position: int
    text: ChunkToEmbed
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a job that is not finished is given back.

    Attributes:
        state: "queued" to be tried again, or "failed".
        attempts: How many it has behind it.
        available_at: When it may be tried again.
        reason: Why it was not finished; None leaves what was known.
    """

    state: Literal["queued", "failed"]
    attempts: int
    available_at: datetime
    reason: str | None = None


def released(job: Job) -> Settlement:
    """Give `job` back as if nobody had tried it."""
    return Settlement("queued", job.attempts - 1, job.available_at)


class Jobs:
    """Runs the statements of the queue, in the transaction it is given or in one of its own."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        space_id: int,
        *,
        lease_s: float,
        row_level_security: bool = False,
    ) -> None:
        self._database = database
        self._tables = tables
        self._space_id = space_id
        self._lease = timedelta(seconds=lease_s)
        self._row_level_security = row_level_security

    async def any_owner(self) -> str | None:
        """Return one of the owners with due jobs, or None."""
        values = {"space": self._space_id, "now": datetime.now(UTC)}
        async with self._database.connect() as connection:
            result = await connection.execute(sql.any_owner_with_due_jobs(self._tables), values)
            return result.scalar()

    async def next_owner(self, after: str) -> str | None:
        """Return the first owner behind `after` with due jobs, or None."""
        values = {"space": self._space_id, "now": datetime.now(UTC), "after": after}
        async with self._database.connect() as connection:
            result = await connection.execute(sql.next_owner_with_due_jobs(self._tables), values)
            return result.scalar()

    async def claim(self, owner_id: str, *, job_limit: int, chunk_limit: int) -> Claim | None:
        """Lease due jobs of an owner, enough for `chunk_limit` chunks; None if there are none.

        A document that has been tried before has fewer others beside it, at last none: so one that
        brings down the embedder, or the worker, is found out.
        """
        async with self._database.transaction(owner_id=owner_id) as connection:
            # Not before: a connection may be long in coming.
            now = datetime.now(UTC)
            values = {"owner": owner_id, "space": self._space_id, "now": now, "limit": job_limit}
            result = await connection.execute(sql.due_jobs(self._tables), values)
            due = (
                Job(row.job_id, row.document_id, row.attempts, row.available_at, row.chunk_count)
                for row in result.all()
            )
            chosen = list(_chosen(due, chunk_limit))
            if not chosen:
                return None
            lease = {
                "owner": owner_id,
                "lease": now + self._lease,
                "job_ids": [job.job_id for job in chosen],
            }
            await connection.execute(sql.lease_jobs(self._tables), lease)
        return Claim(owner_id, [replace(job, attempts=job.attempts + 1) for job in chosen])

    async def renew(self, claim: Claim) -> None:
        """Extend the lease of what is still held."""
        values = _held(claim.owner_id, claim.jobs)
        values["lease"] = datetime.now(UTC) + self._lease
        async with self._database.transaction(owner_id=claim.owner_id) as connection:
            await connection.execute(sql.renew_jobs(self._tables), values)

    async def read(self, claim: Claim, *, limit: int, with_documents: bool) -> list[Chunk]:
        """Return the first chunks of the claimed documents that have no vector.

        Args:
            claim: What is worked on.
            limit: Chunks at most.
            with_documents: Whether the text of each one's document comes along.
        """
        values = {
            "owner": claim.owner_id,
            "space": self._space_id,
            "document_ids": claim.document_ids,
            "limit": limit,
        }
        async with self._database.connect(owner_id=claim.owner_id) as connection:
            rows = (await connection.execute(sql.chunks_to_embed(self._tables), values)).all()
            contents: dict[UUID, str] = {}
            if with_documents:
                wanted = {row.document_id for row in rows}
                found = await connection.execute(
                    sql.contents(self._tables), {**values, "document_ids": list(wanted)}
                )
                contents = {row.document_id: row.content for row in found}
        return [
            Chunk(
                row.document_id,
                row.chunk_id,
                row.position,
                ChunkToEmbed(
                    claim.owner_id,
                    row.document_name,
                    tuple(row.headings),
                    row.content,
                    contents.get(row.document_id, ""),
                ),
                row.updated_at,
            )
            for row in rows
        ]

    async def lock(self, connection: AsyncConnection, claim: Claim) -> dict[UUID, datetime]:
        """Lock the claimed documents; return when each was changed, without those others have.

        Whoever holds a lock may be changing or deleting the document: waiting for them would keep
        other owners waiting as well.
        """
        values = {"owner": claim.owner_id, "document_ids": claim.document_ids}
        statement = documents_sql.lock_documents(self._tables, skip_locked=True)
        result = await connection.execute(statement, values)
        return {row.document_id: row.updated_at for row in result}

    async def write(
        self,
        connection: AsyncConnection,
        owner_id: str,
        chunk_ids: Sequence[UUID],
        vectors: HalfVectors,
    ) -> None:
        """Write the vectors of chunks whose documents are locked; those there already stay.

        Args:
            connection: In the transaction that holds the locks.
            owner_id: Whose chunks.
            chunk_ids: One for each vector.
            vectors: Array of shape ``(len(chunk_ids), dimensions)``.
        """
        values = {"owner": owner_id, "space": self._space_id, "chunk_ids": list(chunk_ids)}
        result = await connection.execute(sql.chunks_with_vector(self._tables), values)
        there = set(result.scalars())
        rows = [row for row, chunk_id in enumerate(chunk_ids) if chunk_id not in there]
        if rows:
            ids = b"".join(chunk_ids[row].bytes for row in rows)
            await copy_rows(
                connection,
                self._tables.embeddings,
                ("owner_id", "chunk_id", "space_id", "embedding"),
                binary_copy.vector_rows(
                    self._space_id, vectors, [binary_copy.VectorGroup(owner_id, ids, rows)]
                ),
                row_level_security=self._row_level_security,
            )

    async def finish(
        self, connection: AsyncConnection, owner_id: str, document_ids: AbstractSet[UUID]
    ) -> set[UUID]:
        """Delete the jobs of those documents that have all their vectors; return which these are.

        Args:
            connection: In the transaction that holds the documents' locks.
            owner_id: Whose documents.
            document_ids: Those that may have them.
        """
        values = {"owner": owner_id, "space": self._space_id, "document_ids": list(document_ids)}
        result = await connection.execute(sql.finish_jobs(self._tables), values)
        return set(result.scalars())

    async def settle(
        self,
        connection: AsyncConnection,
        claim: Claim,
        settlements: Mapping[UUID, Settlement],
    ) -> set[UUID]:
        """Give jobs back; return which of them were still held.

        Args:
            connection: In a transaction.
            claim: What was leased.
            settlements: How, by job; jobs that are not named stay leased.
        """
        jobs = [job for job in claim.jobs if job.job_id in settlements]
        if not jobs:
            return set()
        chosen = [settlements[job.job_id] for job in jobs]
        values = _held(claim.owner_id, jobs) | {
            "new_state_array": [settlement.state for settlement in chosen],
            "new_attempts_array": [settlement.attempts for settlement in chosen],
            "new_available_at_array": [settlement.available_at for settlement in chosen],
            "reason_array": [settlement.reason for settlement in chosen],
        }
        result = await connection.execute(sql.settle_jobs(self._tables), values)
        return set(result.scalars())

    async def give_back(self, claim: Claim, settlements: Mapping[UUID, Settlement]) -> None:
        """Settle in a transaction of its own."""
        async with self._database.transaction(owner_id=claim.owner_id) as connection:
            await self.settle(connection, claim, settlements)

    async def release(self, claim: Claim) -> None:
        """Give all of `claim` back as if nobody had tried it."""
        await self.give_back(claim, {job.job_id: released(job) for job in claim.jobs})


def _chosen(due: Iterable[Job], chunk_limit: int) -> Iterable[Job]:
    """Yield the jobs to work on together, of those that are due."""
    count = chunks = attempts = 0
    for job in due:
        attempts_then = max(attempts, job.attempts)
        if count and count >= JOBS_A_CLAIM >> 2 * min(attempts_then, 4):
            continue
        yield job
        count, attempts, chunks = count + 1, attempts_then, chunks + job.chunk_count
        if chunks >= chunk_limit:
            return


def _held(owner_id: str, jobs: Sequence[Job]) -> dict[str, Any]:
    return {
        "owner": owner_id,
        "job_id_array": [job.job_id for job in jobs],
        "attempts_array": [job.attempts for job in jobs],
        "available_at_array": [job.available_at for job in jobs],
    }


async def list_jobs(
    connection: AsyncConnection,
    tables: Tables,
    *,
    owner_id: str | None,
    state: JobState | None,
    limit: int,
    offset: int,
) -> list[EmbeddingJob]:
    """Return the jobs of an owner, or of all, the oldest first."""
    statement = jobs_sql.list_jobs(tables, of_owner=owner_id is not None, state=state)
    values = {"now": datetime.now(UTC), "owner": owner_id, "limit": limit, "offset": offset}
    with translated_errors():
        rows = (await connection.execute(statement, values)).mappings().all()
    return [EmbeddingJob(**{**row, "document_id": str(row["document_id"])}) for row in rows]


async def requeue_jobs(
    connection: AsyncConnection,
    tables: Tables,
    *,
    owner_id: str | None = None,
    document_ids: Sequence[UUID] | None = None,
    space_id: int | None = None,
) -> int:
    """Make the failed jobs of an owner, or of all, due again; return how many they were."""
    statement = jobs_sql.requeue_jobs(
        tables,
        of_owner=owner_id is not None,
        of_documents=document_ids is not None,
        of_space=space_id is not None,
    )
    values = {
        "now": datetime.now(UTC),
        "owner": owner_id,
        "document_ids": document_ids,
        "space": space_id,
    }
    with translated_errors():
        return int((await connection.execute(statement, values)).rowcount)
