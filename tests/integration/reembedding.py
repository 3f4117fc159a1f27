"""Changes of the model that wait or fail when a test says so, and what they leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from integration.helpers import PATIENCE_S

from llmemory import (
    AsyncMemory,
    EmbeddingError,
    HashEmbedder,
    SearchResult,
)

# Chunks with neither a vector nor a job that will make one.
HEALED = (
    "SELECT count(*) FROM llmemory.chunks AS c WHERE NOT EXISTS (SELECT FROM llmemory.embeddings "
    "AS e WHERE e.owner_id = c.owner_id AND e.chunk_id = c.chunk_id AND e.space_id = {space}) "
    "AND NOT EXISTS (SELECT FROM llmemory.embedding_jobs AS j WHERE j.owner_id = c.owner_id "
    "AND j.document_id = c.document_id AND j.space_id = {space})"
)
OWNERS = ("acme", "globex", "initech")


class Waiting(HashEmbedder):
    """Embeds no document before the test says so, but for the first ``freely``."""

    def __init__(self, dimensions: int = 96, *, freely: int = 0) -> None:
        super().__init__(dimensions)
        self.freely = freely
        self.arrived = anyio.Event()
        self.gate = anyio.Event()

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if purpose == "document" and self.texts >= self.freely:
            self.arrived.set()
            await self.gate.wait()
        return await super().embed(texts, purpose=purpose)


class Failing(HashEmbedder):
    """Fails once it has embedded some texts, until it is mended."""

    def __init__(self, dimensions: int, after: int) -> None:
        super().__init__(dimensions)
        self.after: int | None = after

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if self.after is not None and self.texts >= self.after:
            raise EmbeddingError("out of order")
        return await super().embed(texts, purpose=purpose)


def corpus(count: int) -> list[dict[str, Any]]:
    return [
        {
            "owner_id": OWNERS[number % 3],
            "document_name": str(number),
            "content": f"rule {number} of section {number % 17}, word{number * 7 % 1000}",
            "external_id": number,
        }
        for number in range(count)
    ]


def seen(hits: Sequence[SearchResult]) -> list[tuple[str, float | None]]:
    return [(hit.chunk_id, hit.similarity) for hit in hits]


async def states(memory: AsyncMemory) -> list[tuple[int, str, int, int]]:
    return [
        (space.space_id, space.state, space.vectors, space.missing)
        for space in await memory.list_spaces()
    ]


@asynccontextmanager
async def under_way(memory: AsyncMemory, embedder: Waiting) -> AsyncIterator[None]:
    """Have reembed wait for its embedder within the block, and end after it."""
    async with anyio.create_task_group() as group:
        group.start_soon(memory.reembed, embedder)
        with anyio.fail_after(PATIENCE_S):
            await embedder.arrived.wait()
        yield
        embedder.gate.set()
