"""Which chunks a search by words scores where many have its common words."""

from __future__ import annotations

from typing import Any

import pytest
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, Settings

pytestmark = pytest.mark.anyio


# The common words are looked up in the index of the one, and met by reading the other's chunks.
@pytest.mark.parametrize("count", [1900, 2100])
async def test_a_limit_on_candidates_keeps_the_rarer_words(
    make_memory: MakeMemory, count: int
) -> None:
    memory = make_memory(settings=Settings(candidates_by_words=100))
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(n),
            "content": f"common text {'rare' if n % 100 == 0 else 'usual'} {n}",
            "additional_metadata": {"even": n % 2 == 0},
        }
        for n in range(count)
    )
    hits = await memory.search("acme", "common rare", search_type="text", limit=21)
    rare = {str(n) for n in range(0, count, 100)}
    assert rare <= {hit.document_name for hit in hits}
    more = await memory.search("acme", "common rare", search_type="text", limit=60)
    assert len(more) == 60
    assert [hit.chunk_id for hit in more[:21]] == [hit.chunk_id for hit in hits]
    assert len(await memory.search("acme", "common", search_type="text", limit=100)) == 100
    even = await memory.search(
        "acme", "common rare", search_type="text", limit=60, metadata_filter={"even": True}
    )
    assert len(even) == 60
    assert rare <= {hit.document_name for hit in even}


async def filled(make_memory: MakeMemory) -> AsyncMemory:
    """Return a memory that ranks 100 candidates of 2,100 documents with the same common words."""
    memory = make_memory(settings=Settings(candidates_by_words=100))
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(n),
            "content": f"common text {'rare' if n % 100 == 0 else 'usual'} word{n % 30} {n}"
            + " more" * (n % 13),
            "document_type": "report" if n % 50 == 4 else "general",
            "additional_metadata": {"even": n % 2 == 0, "number": n},
        }
        for n in range(2100)
    )
    return memory


FILTERS: list[tuple[dict[str, Any], int]] = [
    ({"metadata_filter": {"number": {"$lt": 40}}}, 40),
    ({"metadata_filter": {"number": 7}}, 1),
    ({"document_type": "report"}, 42),
    ({"document_type": "report", "metadata_filter": {"even": True}}, 42),
    ({"metadata_filter": {"even": False}}, 1050),
    ({"metadata_filter": {"number": -1}}, 0),
]


async def test_all_that_a_selective_filter_leaves_is_ranked(make_memory: MakeMemory) -> None:
    memory = await filled(make_memory)
    every = make_memory(settings=Settings(candidates_by_words=1_000_000))
    for filters, passing in FILTERS:
        options = {"search_type": "text", "limit": 100, **filters}
        for query in ("common", "common usual word7", 'common "text usual" -word9'):
            found = await memory.search("acme", query, **options)
            right = await every.search("acme", query, **options)
            assert [(hit.document_name, hit.lexical_score) for hit in found] == [
                (hit.document_name, hit.lexical_score) for hit in right
            ]
            if query == "common":
                assert len(found) == min(passing, 100)


async def test_a_filter_that_leaves_most_keeps_the_rarer_words(make_memory: MakeMemory) -> None:
    memory = await filled(make_memory)
    but_first = {"number": {"$gte": 1}}
    hits = await memory.search(
        "acme", "common rare", search_type="text", limit=60, metadata_filter=but_first
    )
    assert len(hits) == 60
    rare = {str(n) for n in range(100, 2100, 100)}
    assert rare <= {hit.document_name for hit in hits}
    assert "0" not in {hit.document_name for hit in hits}


@pytest.mark.parametrize("search_type", ["text", "hybrid"])
@pytest.mark.parametrize(
    ("query", "filters", "matching"),
    [
        ("common rare", {}, 2100),
        ("word7 usual", {}, 2100 - 21),
        ("common", {"metadata_filter": {"even": True}}, 1050),
        ('common "text usual" word3', {}, 2079),
        ("rare word4", {"metadata_filter": {"number": {"$gte": 60}}}, 20 + 68),
    ],
)
async def test_pages_have_every_hit_once(
    make_memory: MakeMemory, search_type: str, query: str, filters: Any, matching: int
) -> None:
    memory = await filled(make_memory)
    options = {"search_type": search_type, "limit": 90, **filters}
    found: list[str] = []
    offset = 0
    while hits := await memory.search("acme", query, offset=offset, **options):
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        found += [hit.chunk_id for hit in hits]
        offset += 90
    assert len(set(found)) == len(found)
    if search_type == "text":
        assert len(found) == matching


async def test_ranks_and_shares_are_the_same_on_all_pages(make_memory: MakeMemory) -> None:
    memory = await filled(make_memory)
    query = "common usual word7"
    whole = await memory.search("acme", query, search_type="text", limit=1000)
    assert [hit.text_rank for hit in whole] == list(range(1, 1001))
    best = whole[0].lexical_score or 0.0
    for offset in (0, 60, 900, 1500):
        hits = await memory.search("acme", query, search_type="text", limit=30, offset=offset)
        assert [hit.text_rank for hit in hits] == list(range(offset + 1, offset + 31))
        for hit in hits:
            assert hit.score == pytest.approx(min((hit.lexical_score or 0.0) / best, 1.0))
