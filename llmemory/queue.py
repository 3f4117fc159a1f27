"""Making the vectors that adding has left for later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory import binary_copy
from llmemory.database import Database
from llmemory.drivers import copy_into
from llmemory.embedding.base import Embedder, embed_checked
from llmemory.errors import EmbeddingError
from llmemory.models import Tables
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.statements import documents as documents_sql
from llmemory.statements import queue as sql
from llmemory.types import HalfVectors

__all__ = ["Queue"]

OWNERS_A_ROUND = 16
JOBS_A_CLAIM = 32
FIRST_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class _Claim:
    """Leased jobs of one owner."""

    owner_id: str
    jobs: dict[UUID, UUID]
    attempts: int

    @property
    def document_ids(self) -> list[UUID]:
        return list(self.jobs.values())


class Queue:
    """The jobs of one schema and space.

    A job is leased in one transaction, embedded outside any, and finished in another: a worker
    that dies leaves a lease that runs out.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        embedder: Embedder,
        space: Space,
        settings: Settings,
    ) -> None:
        self._database = database
        self._tables = tables
        self._embedder = embedder
        self._space = space
        self._settings = settings

    async def drain(self, owner_id: str | None, limit: int | None) -> int:
        """Work on due jobs, a few of each owner in turn; return how many documents were finished.

        Raises:
            EmbeddingError: The embedder failed; the jobs wait to be tried again.
        """
        finished = 0
        while limit is None or finished < limit:
            owners = [owner_id] if owner_id is not None else await self._owners()
            progressed = 0
            for owner in owners:
                room = JOBS_A_CLAIM if limit is None else min(JOBS_A_CLAIM, limit - finished)
                if room <= 0:
                    break
                claim = await self._claim(owner, room)
                if claim is not None:
                    await self._work(claim)
                    progressed += len(claim.jobs)
                    finished += len(claim.jobs)
            if not progressed:
                break
        return finished

    async def _owners(self) -> list[str]:
        values = {"now": datetime.now(UTC), "space": self._space.space_id, "limit": OWNERS_A_ROUND}
        async with self._database.connect() as connection:
            result = await connection.execute(sql.owners_with_jobs(self._tables), values)
            return [row.owner_id for row in result]

    async def _claim(self, owner_id: str, limit: int) -> _Claim | None:
        now = datetime.now(UTC)
        values = {
            "owner": owner_id,
            "space": self._space.space_id,
            "now": now,
            "lease": now + timedelta(seconds=self._settings.job_lease_s),
            "limit": limit,
        }
        async with self._database.transaction() as connection:
            rows = (await connection.execute(sql.claim_jobs(self._tables), values)).all()
        if not rows:
            return None
        return _Claim(
            owner_id,
            {row.job_id: row.document_id for row in rows},
            max(row.attempts for row in rows),
        )

    async def _work(self, claim: _Claim) -> None:
        try:
            async with self._database.connect() as connection:
                rows = await self._without_vector(connection, claim)
            vectors = await embed_checked(
                self._embedder,
                [row.content for row in rows],
                purpose="document",
                batch_size=self._settings.embedding_batch_size,
            )
        except EmbeddingError as error:
            await self._give_back(claim, type(error).__name__)
            raise
        await self._finish(claim, [row.chunk_id for row in rows], vectors)

    async def _finish(self, claim: _Claim, chunk_ids: Sequence[UUID], vectors: HalfVectors) -> None:
        """Write the vectors of the chunks that are still there; a chunk's text never changes."""
        made = {chunk_id: number for number, chunk_id in enumerate(chunk_ids)}
        async with self._database.transaction() as connection:
            await connection.execute(
                documents_sql.lock_documents(self._tables),
                {"owner": claim.owner_id, "document_ids": claim.document_ids},
            )
            missing = await self._without_vector(connection, claim)
            write = [row.chunk_id for row in missing if row.chunk_id in made]
            if write:
                await copy_into(
                    connection,
                    self._tables.embeddings,
                    ("owner_id", "chunk_id", "space_id", "embedding"),
                    binary_copy.vector_rows(
                        self._space.space_id,
                        vectors,
                        [
                            binary_copy.VectorGroup(
                                claim.owner_id,
                                b"".join(chunk.bytes for chunk in write),
                                [made[chunk] for chunk in write],
                            )
                        ],
                    ),
                )
            # Replaced while we worked: its new chunks are a job still.
            unfinished = {row.document_id for row in missing if row.chunk_id not in made}
            await connection.execute(
                sql.finish_jobs(self._tables),
                {
                    "owner": claim.owner_id,
                    "job_ids": [
                        job for job, document in claim.jobs.items() if document not in unfinished
                    ],
                },
            )

    async def _give_back(self, claim: _Claim, reason: str) -> None:
        wait = FIRST_RETRY_S * 2 ** (claim.attempts - 1)
        values: dict[str, Any] = {
            "owner": claim.owner_id,
            "job_ids": list(claim.jobs),
            "most_attempts": self._settings.job_attempts,
            "retry_at": datetime.now(UTC) + timedelta(seconds=wait),
            "reason": reason,
        }
        async with self._database.transaction() as connection:
            await connection.execute(sql.fail_jobs(self._tables), values)

    async def _without_vector(self, connection: AsyncConnection, claim: _Claim) -> Sequence[Any]:
        values = {
            "owner": claim.owner_id,
            "document_ids": claim.document_ids,
            "space": self._space.space_id,
        }
        return (await connection.execute(sql.chunks_without_vector(self._tables), values)).all()
