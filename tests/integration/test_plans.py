"""Which index serves each hot statement: a plan that is lost fails here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from integration.helpers import fetch
from plugins.plans import indexes, most_rows
from plugins.server import fresh_database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, HashEmbedder, Settings

pytestmark = pytest.mark.anyio

OWNERS = 50
DOCUMENTS = 200
LARGE = 5000


@pytest.fixture(scope="module")
def filled(server_url: str, template: str) -> Iterator[str]:
    """A database with 50 owners of 200 documents and one of 5,000, made once for all tests."""

    async def fill(url: str) -> None:
        async with AsyncMemory(url, embedder=HashEmbedder()) as memory:
            await memory.add_documents(
                {
                    "owner_id": f"owner {owner}",
                    "document_name": str(number),
                    "content": f"Days of leave number {number} of {owner}, word{number % 20}.",
                    "external_id": f"key {number}",
                    "additional_metadata": {"number": number},
                    "language": "german" if number % 50 == 0 else "english",
                }
                for owner in range(OWNERS)
                for number in range(DOCUMENTS)
            )
            await memory.add_documents(
                {
                    "owner_id": "large",
                    "document_name": str(number),
                    "content": f"Days of leave number {number}.",
                    "additional_metadata": {
                        "number": number,
                        "tags": [f"tag {number}", "all"],
                        "place": {"shelf": number},
                        "kind": "all",
                    },
                }
                for number in range(LARGE)
            )

    with fresh_database(server_url, template) as url:
        asyncio.run(fill(url))
        fetch(url, "VACUUM ANALYZE")
        yield url


@pytest.fixture
async def engine(filled: str) -> AsyncIterator[AsyncEngine]:
    plain = "postgresql://" + filled.partition("://")[2]
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(plain),
        poolclass=NullPool,
    )
    yield engine
    await engine.dispose()


@pytest.fixture
def memory(engine: AsyncEngine) -> AsyncMemory:
    return AsyncMemory(engine=engine, embedder=HashEmbedder())


def whole_tables(found: list[dict[str, Any]]) -> set[str]:
    return {
        node["Relation Name"]
        for node in found
        if node["Node Type"] == "Seq Scan"
        and node["Relation Name"] in {"documents", "chunks", "embeddings"}
    }


async def test_documents_by_external_id(memory: AsyncMemory, plans: Any) -> None:
    await memory.add_document(
        "owner 7", "3", "Days of leave number 3 of 7, word3.", external_id="key 3"
    )
    assert "uq_documents_owner_id_external_id" in indexes(plans())
    assert not whole_tables(plans())


async def test_chunks_that_are_replaced(memory: AsyncMemory, plans: Any) -> None:
    await memory.add_document("owner 7", "3", "New text.", external_id="key 3")
    assert "ix_chunks_owner_id_document_id_position" in indexes(plans())
    assert not whole_tables(plans())
    assert most_rows(plans(), "chunks") <= 1


async def test_one_document(memory: AsyncMemory, plans: Any) -> None:
    listed = await memory.list_documents("owner 7", limit=1)
    plans().clear()
    await memory.get_document("owner 7", listed.documents[0].document_id)
    assert indexes(plans()) == {"pk_documents"}


async def test_the_page_of_a_list_comes_from_the_key(memory: AsyncMemory, plans: Any) -> None:
    await memory.list_documents("owner 7", limit=10)
    assert "pk_documents" in indexes(plans())
    assert not whole_tables(plans())
    # In the key's order: nothing but the page itself is sorted.
    assert not [
        node for node in plans() if node["Node Type"] == "Sort" and node["Actual Rows"] > 10
    ]


@pytest.mark.parametrize("filters", [{}, {"metadata_filter": {"number": 5}}])
async def test_the_vector_arm_reads_the_owners_rows(
    memory: AsyncMemory, plans: Any, filters: Any
) -> None:
    await memory.search("owner 7", "leave", search_type="vector", **filters)
    assert "pk_embeddings" in indexes(plans())
    assert not whole_tables(plans())
    assert most_rows(plans(), "embeddings") <= DOCUMENTS


async def test_the_word_arm_reads_no_table_as_a_whole(memory: AsyncMemory, plans: Any) -> None:
    for search_type in ("text", "hybrid"):
        await memory.search("owner 7", "leave word7", search_type=search_type)
    assert not whole_tables(plans())
    assert most_rows(plans(), "chunks") <= DOCUMENTS


async def test_the_owners_languages_are_probed(memory: AsyncMemory, plans: Any) -> None:
    await memory.search("owner 7", "word7", search_type="text")
    assert "ix_documents_owner_id_language" in indexes(plans())
    probes = [
        node for node in plans() if node.get("Index Name") == "ix_documents_owner_id_language"
    ]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in probes) <= 5


async def test_counting_reads_the_owners_rows(memory: AsyncMemory, plans: Any) -> None:
    await memory.get_statistics("owner 7")
    assert not whole_tables(plans())


SELECTIVE = [
    {"number": 5},
    {"number": {"$eq": 5}},
    {"number": {"$in": [5, 7, 9]}},
    {"tags": {"$contains": "tag 5"}},
    {"tags": {"$contains": ["all", "tag 5"]}},
    {"place": {"shelf": 5}},
    {"place": {"shelf": {"$eq": 5}}},
    {"tags": ["tag 5", "all"]},
    {"number": 5, "kind": "all"},
    {"number": 5, "place": {"shelf": {"$gt": 4, "$lt": 6}}},
    {"$and": [{"kind": {"$ne": "none"}}, {"number": 5}]},
    {"$or": [{"number": 5}, {"tags": {"$contains": "tag 7"}}, {"place": {"shelf": 9}}]},
    {"kind": "all", "$or": [{"number": 5}, {"number": {"$in": [7, 9]}}]},
]


@pytest.mark.parametrize("metadata_filter", SELECTIVE, ids=range(len(SELECTIVE)))
async def test_selective_filters_use_the_index(
    memory: AsyncMemory, plans: Any, metadata_filter: dict[str, Any]
) -> None:
    listed = await memory.list_documents("large", metadata_filter=metadata_filter)
    assert 1 <= listed.total_count <= 3
    hits = await memory.search("large", "leave", metadata_filter=metadata_filter)
    assert len(hits) == listed.total_count
    assert "ix_documents_owner_id_metadata" in indexes(plans())
    # The large owner has a third of the chunks: to read them all may well be cheapest.
    assert "documents" not in whole_tables(plans())
    assert most_rows(plans(), "documents") <= 100


@pytest.mark.parametrize("search_type", ["vector", "text", "hybrid"])
async def test_types_and_dates_are_looked_up(
    memory: AsyncMemory, plans: Any, search_type: str
) -> None:
    rare: dict[str, dict[str, Any]] = {
        "ix_documents_owner_id_document_type": {"document_type": "email"},
        "ix_documents_owner_id_document_date": {"date_from": "2031-01-01"},
    }
    for index, options in rare.items():
        assert await memory.search("large", "leave", search_type=search_type, **options) == []
        assert index in indexes(plans())
        assert most_rows(plans(), "documents") <= 100
        plans().clear()


async def test_alternatives_are_looked_up_each(memory: AsyncMemory, plans: Any) -> None:
    either = {"$or": [{"number": 5}, {"tags": {"$contains": "tag 7"}}]}
    await memory.list_documents("large", metadata_filter=either)
    assert "BitmapOr" in {node["Node Type"] for node in plans()}


async def test_the_text_around_a_hit_is_looked_up(memory: AsyncMemory, plans: Any) -> None:
    hits = await memory.search("owner 7", "leave", limit=10, context_window=5, highlight=True)
    assert all(hit.context == hit.content for hit in hits)
    assert "ix_chunks_owner_id_document_id_position" in indexes(plans())
    assert not whole_tables(plans())
    neighbours = [node for node in plans() if node.get("Alias") == "neighbours"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in neighbours) == 10
    parsed = [node for node in plans() if node.get("Alias") == "parsed"]
    assert sum(node["Actual Loops"] for node in parsed) == 10


async def test_a_turn_of_the_queue_reads_no_more_than_its_portion(
    memory: AsyncMemory, plans: Any, filled: str
) -> None:
    await memory.initialize()
    fetch(
        filled,
        """
        INSERT INTO llmemory.embedding_jobs
            (owner_id, job_id, document_id, space_id, state, attempts, available_at, created_at)
        SELECT owner_id, document_id, document_id, 1, 'queued', 0, created_at, created_at
        FROM llmemory.documents
        """,
    )
    fetch(filled, "ANALYZE llmemory.embedding_jobs")
    plans().clear()
    try:
        assert await memory.process_pending_embeddings("large", limit=20) == 20
        assert await memory.process_pending_embeddings(limit=20) == 20
    finally:
        fetch(filled, "TRUNCATE llmemory.embedding_jobs")
    assert "ix_embedding_jobs_owner_id_state_available_at" in indexes(plans())
    assert not whole_tables(plans())
    assert most_rows(plans(), "chunks") <= 20
    assert most_rows(plans(), "embeddings") <= DOCUMENTS


@pytest.mark.direct("a pooler has each statement planned anew")
@pytest.mark.parametrize("search_type", ["vector", "text", "hybrid"])
async def test_a_search_of_a_small_owner_beside_large_ones_is_not_planned_anew(
    filled: str, search_type: str
) -> None:
    async with AsyncMemory(filled, embedder=HashEmbedder(), settings=Settings(pool_size=1)) as own:
        await own.add_document("small", "only", "Days of leave number 1 of all.")
        for number in range(12):
            assert await own.search("small", f"leave {number}", search_type=search_type)
        plans = text(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
            "WHERE statement LIKE '%best_rank%' AND statement NOT LIKE '%pg_prepared%'"
        )
        async with own._database.connect() as connection:
            (counted,) = await connection.execute(plans)
        assert tuple(counted) == (7, 5)
