"""The vectors of the queries that were asked last."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256

from llmemory.embedding.base import Embedder, embed_checked, provider_of
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
        self._size = size
        # Each access is one step of the interpreter: there is no lock that a fork could leave
        # taken.
        self._vectors: OrderedDict[tuple[str, str, int, bytes], HalfVectors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    async def embed(self, embedder: Embedder, text: str) -> HalfVectors:
        """Return the vector of a query, shape ``(dimensions,)``, read-only.

        Raises:
            EmbeddingError: As of ``embed_checked``.
        """
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        key = (provider_of(embedder), embedder.model, embedder.dimensions, digest)
        with suppress(KeyError):
            self._vectors.move_to_end(key)
            return self._vectors[key]
        vectors = await embed_checked(embedder, [text], purpose="query", batch_size=1)
        vector: HalfVectors = vectors[0]
        vector.setflags(write=False)
        if self._size:
            self._vectors[key] = vector
        while len(self._vectors) > self._size:
            with suppress(KeyError):
                self._vectors.popitem(last=False)
        return vector
