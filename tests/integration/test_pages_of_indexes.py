"""Pages of searches through HNSW indexes, which know no order among equals, and not all hits."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from integration.clusters import CLUSTERS, SETTINGS, ClusteredEmbedder
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, HashEmbedder, Settings
from llmemory.search import index_use

pytestmark = pytest.mark.anyio

OWNER = "acme"
QUERY = "cluster 3 number 100003"


async def memory_of(
    make_memory: MakeMemory, database_url: str, numbers: Iterable[int], **changed: Any
) -> AsyncMemory:
    settings = SETTINGS.model_copy(update=changed)
    memory = make_memory(database_url, embedder=ClusteredEmbedder(), settings=settings)
    await memory.add_documents(
        {
            "owner_id": OWNER,
            "document_name": str(at),
            "content": f"cluster {number % CLUSTERS} number {number}",
            "additional_metadata": {"half": at % 2 == 0, "some": at % 5 == 0},
        }
        for at, number in enumerate(numbers)
    )
    assert (await memory.maintain()).indexes_built == 1
    return memory


async def paged(memory: AsyncMemory, size: int, pages: int, **search: Any) -> list[str]:
    return [
        hit.chunk_id
        for page in range(pages)
        for hit in await memory.search(OWNER, QUERY, limit=size, offset=page * size, **search)
    ]


@pytest.mark.parametrize("metadata_filter", [None, {"half": True}])
async def test_pages_join_where_hits_are_equal(
    make_memory: MakeMemory, database_url: str, metadata_filter: Any
) -> None:
    # Each text is there 50 times.
    memory = await memory_of(make_memory, database_url, [at % 24 for at in range(1200)])
    search: dict[str, Any] = {"search_type": "vector", "metadata_filter": metadata_filter}
    whole = [hit.chunk_id for hit in await memory.search(OWNER, QUERY, limit=84, **search)]
    assert await paged(memory, 7, 12, **search) == whole


@pytest.mark.parametrize(
    ("search_type", "signs", "metadata_filter", "expected"),
    [
        ("vector", False, None, 1200),
        ("vector", True, {"half": True}, 600),
        ("hybrid", False, {"some": True}, 240),
        ("hybrid", True, None, 1200),
    ],
)
async def test_all_pages_have_every_hit_once(
    make_memory: MakeMemory,
    database_url: str,
    search_type: str,
    signs: bool,
    metadata_filter: Any,
    expected: int,
) -> None:
    # The index gives some in order, then some more; the rest is read.
    changed: dict[str, Any] = {
        "hnsw_ef_search": 10,
        "hnsw_max_scan_tuples": 700,
        "candidates": 20,
        "hnsw_signs": signs,
    }
    memory = await memory_of(make_memory, database_url, range(1200), **changed)
    search: dict[str, Any] = {"search_type": search_type, "metadata_filter": metadata_filter}
    found: list[str] = []
    for offset in range(0, expected + 20, 20):
        hits = await memory.search(OWNER, QUERY, limit=20, offset=offset, **search)
        assert len(hits) == min(20, expected - offset)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        found += [hit.chunk_id for hit in hits]
    assert len(set(found)) == len(found) == expected


async def test_ranks_are_places_among_the_hits(make_memory: MakeMemory, database_url: str) -> None:
    memory = await memory_of(make_memory, database_url, range(1200), hnsw_ef_search=10)
    hits = await memory.search(OWNER, QUERY, search_type="vector", limit=90, offset=30)
    assert [hit.vector_rank for hit in hits] == list(range(31, 121))
    similarities = [hit.similarity or 0.0 for hit in hits]
    assert similarities == sorted(similarities, reverse=True)


async def test_pages_of_signs_are_nearest_of_what_was_looked_at(
    make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of all: of much more, PostgreSQL might read and sort them instead.
    monkeypatch.setattr(index_use, "_most_hits", lambda index, passing, hits: 8)
    changed = {"hnsw_signs": True, "hnsw_ef_search": 400}
    memory = await memory_of(make_memory, database_url, range(1200), **changed)
    found = await paged(memory, 1, 8, search_type="vector")
    assert len(set(found)) == 8
    exact = make_memory(
        database_url, embedder=ClusteredEmbedder(), settings=Settings(hnsw_owner_vectors=10**6)
    )
    exact._indexes._expires_s = float("inf")
    right = await exact.search(OWNER, QUERY, search_type="vector", limit=8)
    assert len(set(found) & {hit.chunk_id for hit in right}) >= 7
    assert found[0] == right[0].chunk_id


async def test_scores_are_the_same_on_all_pages_of_signs(
    make_memory: MakeMemory, database_url: str
) -> None:
    settings = Settings(hnsw_owner_vectors=400, hnsw_signs=True)
    memory = make_memory(database_url, embedder=HashEmbedder(16), settings=settings)
    words = "alpha beta gamma delta door red green blue rule house cat dog".split()
    words += [f"w{number}" for number in range(300)]
    common = [30] * 12 + [1] * 300
    random = Random(1)
    texts = [" ".join(random.choices(words, common, k=random.randint(3, 10))) for _ in range(3000)]
    await memory.add_documents(
        {"owner_id": OWNER, "document_name": str(at), "content": text}
        for at, text in enumerate(texts)
    )
    assert (await memory.maintain()).indexes_built == 1
    for _ in range(40):
        query = " ".join(random.choices(words, [30] * 12 + [5] * 300, k=3))
        found = [
            hit.chunk_id
            for offset in (0, 100, 200)
            for hit in await memory.search(OWNER, query, limit=100, offset=offset)
        ]
        assert len(set(found)) == len(found)
