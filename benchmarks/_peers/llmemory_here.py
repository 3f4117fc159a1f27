"""This library: ``add_documents`` and a hybrid search."""

from __future__ import annotations

from typing import Any

import numpy as np

import llmemory
from llmemory import AsyncMemory, Settings


class Known:
    """Looks up what was embedded before."""

    model = "known"
    alpha = llmemory.StaticEmbedder.alpha

    def __init__(self, known: Any) -> None:
        self._known = known
        self.dimensions = len(next(iter(known.values())))

    async def embed(self, texts: Any, *, purpose: str) -> Any:
        """Return the vectors of `texts`."""
        return np.stack([self._known[text] for text in texts])


class Peer:
    """One memory, one owner."""

    version = llmemory.__version__

    def __init__(self, known: Any, url: str, with_index: bool, folder: Any) -> None:
        # Passages stay whole, as in the others.
        self._memory = AsyncMemory(
            url,
            schema="peer_llmemory",
            embedder=Known(known),
            settings=Settings(chunk_size=100_000, hnsw_owner_vectors=1_000),
        )
        self._with_index = with_index

    async def start(self) -> None:
        """Make the tables, with the index of an owner who had many vectors before."""
        await self._memory.initialize()
        if self._with_index:
            rng = np.random.default_rng(7)
            self._memory.embedder._known |= {
                f"text {n}": vector
                for n, vector in enumerate(
                    rng.standard_normal((1000, self._memory.embedder.dimensions), np.float32)
                )
            }
            before = await self._memory.add_documents(
                {"owner_id": "peer", "document_name": "x", "content": f"text {n}"}
                for n in range(1000)
            )
            await self._memory.maintain()
            await self._memory.delete_documents("peer", [r.document_id for r in before])

    async def add(self, passages: list[tuple[str, str]]) -> None:
        """Add passages."""
        await self._memory.add_documents(
            {"owner_id": "peer", "document_name": key, "content": text, "external_id": key}
            for key, text in passages
        )

    async def search(self, query: str) -> list[str]:
        """Return the names of the ten best."""
        return [hit.document_name for hit in await self._memory.search("peer", query, limit=10)]

    async def stop(self) -> None:
        """Close."""
        await self._memory.close()
