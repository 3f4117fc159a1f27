"""Texts whose vectors lie in clusters, as those of real documents do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmemory import HashEmbedder, Settings

DIMENSIONS = 32
CLUSTERS = 40
LARGE = 'large\'s "owner" \\ 100% :space __[POSTCOMPILE_x] é'
SMALL = "small"
LARGE_COUNT = 3000
SMALL_COUNT = 300

SETTINGS = Settings(hnsw_owner_vectors=1000, hnsw_exact_chunks=100, word_count_chunks=1000)


class ClusteredEmbedder(HashEmbedder):
    """Gives the text "cluster C number N" a place near the centre of cluster C."""

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        super().__init__(dimensions)
        self._centres = np.random.default_rng(7).standard_normal((CLUSTERS, dimensions))

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        return np.stack([self._vector(text) for text in texts]).astype(np.float32)

    def _vector(self, text: str) -> Any:
        words = text.split()
        cluster, number = int(words[1]), int(words[3])
        noise = np.random.default_rng(number).standard_normal(self.dimensions)
        return self._centres[cluster % CLUSTERS] + 0.6 * noise


def documents(owner_id: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield documents of one chunk each; some keys are in every second, and in every 200th.

    Those of a cluster are all "half" or none of them is; of each, every second is "scattered".
    """
    for number in range(count):
        yield {
            "owner_id": owner_id,
            "document_name": str(number),
            "content": f"cluster {number * 7 % CLUSTERS} number {number}",
            "additional_metadata": {
                "half": number % 2 == 0,
                "scattered": number // CLUSTERS % 2 == 0,
                "rare": number % 200 == 0,
                "number": number,
            },
        }
