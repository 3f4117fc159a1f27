"""The vectors of queries are kept: how many, of which model, and for whom."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from llmemory.embedding.base import provider_of
from llmemory.embedding.query_cache import QueryCache
from llmemory.errors import EmbeddingError
from llmemory.types import Vectors

pytestmark = pytest.mark.anyio


class Counting:
    """Makes a vector of a text's length, and keeps what it was asked."""

    def __init__(self, model: str = "lengths", dimensions: int = 2, provider: str = "test") -> None:
        self.model, self.dimensions, self.provider = model, dimensions, provider
        self.asked: list[str] = []

    async def embed(self, texts: Any, *, purpose: str) -> Vectors:
        assert purpose == "query"
        await asyncio.sleep(0)
        self.asked += texts
        vectors = np.ones((len(texts), self.dimensions), dtype=np.float32)
        vectors[:, 0] = [len(text) for text in texts]
        return vectors


async def test_a_query_is_embedded_once() -> None:
    embedder, cache = Counting(), QueryCache(10)
    first = await cache.embed(embedder, "one")
    assert np.allclose(first, np.array([3, 1]) / np.sqrt(10), atol=1e-3)
    assert np.array_equal(first, await cache.embed(embedder, "one"))
    await cache.embed(embedder, "three")
    assert embedder.asked == ["one", "three"]


async def test_the_query_used_longest_ago_is_dropped() -> None:
    embedder, cache = Counting(), QueryCache(2)
    for text in ("one", "two", "one", "three", "one", "two"):
        await cache.embed(embedder, text)
    assert embedder.asked == ["one", "two", "three", "two"]
    assert len(cache) == 2


async def test_without_room_every_query_is_embedded() -> None:
    embedder, cache = Counting(), QueryCache(0)
    for _ in range(2):
        await cache.embed(embedder, "one")
    assert embedder.asked == ["one", "one"]
    assert len(cache) == 0


@pytest.mark.parametrize("other", [{"model": "m"}, {"dimensions": 3}, {"provider": "p"}])
async def test_another_model_has_vectors_of_its_own(other: dict[str, Any]) -> None:
    cache = QueryCache(10)
    for embedder in (Counting(), Counting(**other)):
        vector = await cache.embed(embedder, "one")
        assert vector.shape == (embedder.dimensions,)
        assert embedder.asked == ["one"], provider_of(embedder)


async def test_vectors_cannot_be_changed_from_outside() -> None:
    vector = await QueryCache(10).embed(Counting(), "one")
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 0


async def test_a_failure_is_not_kept() -> None:
    class Failing(Counting):
        async def embed(self, texts: Any, *, purpose: str) -> Vectors:
            vectors = await super().embed(texts, purpose=purpose)
            return vectors * np.nan if len(self.asked) == 1 else vectors

    embedder, cache = Failing(), QueryCache(10)
    with pytest.raises(EmbeddingError):
        await cache.embed(embedder, "one")
    assert np.isfinite(await cache.embed(embedder, "one")).all()
    assert embedder.asked == ["one", "one"]


def test_event_loops_of_many_threads() -> None:
    cache, wrong = QueryCache(5), []

    async def search(embedder: Counting) -> None:
        for number in range(2000):
            text = "x" * (number * 7 % 11 + 1)
            vector = (await cache.embed(embedder, text)).astype(np.float32)
            if round(float(vector[0] / vector[1])) != len(text):
                wrong.append(text)

    threads = [threading.Thread(target=lambda: asyncio.run(search(Counting()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 5
