"""An embedder for tests: deterministic, instant, with no model behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import anyio.to_thread
import numpy as np

from llmemory.embedding.base import Purpose
from llmemory.errors import ConfigurationError
from llmemory.types import Vectors

__all__ = ["HashEmbedder"]

INLINE_CHARACTERS = 10_000

_WORD = re.compile(r"\w+")


class HashEmbedder:
    """Hashes words into vectors, so that texts with common words are near each other.

    The same text gives the same vector on every machine. Use it in your tests; it knows nothing
    of meaning. Source of the method: Weinberger et al. 2009, feature hashing.

    Args:
        dimensions: Length of the vectors, 2 to 16,000.

    Attributes:
        calls: How often ``embed`` was called.
        texts: How many texts it was given.
    """

    provider = "hash"

    def __init__(self, dimensions: int = 256) -> None:
        if not 2 <= dimensions <= 16_000:
            raise ConfigurationError("HashEmbedder: dimensions must be 2 to 16,000.")
        self.dimensions = dimensions
        self.model = "hash"
        self.calls = 0
        self.texts = 0

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return vectors of length 1, shape ``(len(texts), dimensions)``."""
        self.calls += 1
        self.texts += len(texts)
        if sum(map(len, texts)) < INLINE_CHARACTERS:
            return self._embed(texts)
        return await anyio.to_thread.run_sync(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()) or [text]:
                number = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
                vectors[row, number % self.dimensions] += 1 if number >> 63 else -1
            if not vectors[row].any():
                vectors[row, 0] = 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors
