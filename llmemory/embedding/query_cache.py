"""The vectors of the queries that were asked last."""

from __future__ import annotations

from hashlib import sha256

from llmemory.embedding.base import Embedder, embed_checked, provider_of
from llmemory.recent import Recent
from llmemory.types import HalfVectors

__all__ = ["QueryCache"]


class QueryCache:
    """Embeds queries, and keeps the vectors of the last ones, by model and text.

    It may be used from several event loops and threads. Equal queries that are asked at the same
    time are each embedded. Texts are not kept, only their hashes, and neither are failures.

    Args:
        size: How many vectors are kept; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self._vectors: Recent[tuple[str, str, int, bytes], HalfVectors] = Recent(size)

    def __len__(self) -> int:
        return len(self._vectors)

    async def embed(self, embedder: Embedder, text: str) -> HalfVectors:
        """Return the vector of a query, shape ``(dimensions,)``, read-only.

        Raises:
            EmbeddingError: As of ``embed_checked``.
        """
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        key = (provider_of(embedder), embedder.model, embedder.dimensions, digest)
        vector = self._vectors.get(key)
        if vector is None:
            vectors = await embed_checked(embedder, [text], purpose="query", batch_size=1)
            vector = vectors[0]
            vector.setflags(write=False)
            self._vectors.put(key, vector)
        return vector
