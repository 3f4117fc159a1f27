"""Pages of searches through HNSW indexes, which know no order among equals."""

from __future__ import annotations

from typing import Any

import pytest
from integration.clusters import CLUSTERS, SETTINGS, ClusteredEmbedder
from plugins.memories import MakeMemory

from llmemory import AsyncMemory

pytestmark = pytest.mark.anyio

OWNER = "acme"
QUERY = "cluster 3 number 100003"


async def memory_of(make_memory: MakeMemory, database_url: str, numbers: list[int]) -> AsyncMemory:
    memory = make_memory(database_url, embedder=ClusteredEmbedder(), settings=SETTINGS)
    await memory.add_documents(
        {
            "owner_id": OWNER,
            "document_name": str(at),
            "content": f"cluster {number % CLUSTERS} number {number}",
            "additional_metadata": {"half": at % 2 == 0},
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
