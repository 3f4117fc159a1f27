"""Searches through HNSW indexes: plans, hits, round trips, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
from integration.clusters import (
    LARGE,
    LARGE_COUNT,
    SETTINGS,
    SMALL,
    SMALL_COUNT,
    ClusteredEmbedder,
    documents,
)
from integration.helpers import fetch, until
from plugins.memories import MakeMemory
from plugins.plans import indexes, indexes_read, most_rows
from plugins.server import fresh_database, with_driver
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, SearchResult, StorageError
from llmemory.recent import Recent
from llmemory.search import index_use
from llmemory.search.known_filters import PROBES
from llmemory.statements.search import NEAREST
from llmemory.statements.vector_indexes import index_name
from llmemory.validation.searches import checked_filters

pytestmark = pytest.mark.anyio

INDEX = index_name(LARGE, 1, "halves")
QUERY = "cluster 3 number 100003"
SETTINGS_NOW = (
    "SELECT coalesce(current_setting('hnsw.ef_search', true), '40'), "
    "coalesce(current_setting('hnsw.iterative_scan', true), 'off'), "
    "current_setting('plan_cache_mode'), current_setting('enable_seqscan')"
)
UNTOUCHED = ("40", "off", "auto", "on", 0)
OPEN_TRANSACTIONS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
)
WAITING = (
    "SELECT pid FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture(scope="module")
def filled(server_url: str, template: str) -> Iterator[str]:
    """A database with an owner who has an HNSW index and one who has none."""

    async def fill(url: str) -> None:
        async with AsyncMemory(url, embedder=ClusteredEmbedder(), settings=SETTINGS) as memory:
            await memory.add_documents(documents(LARGE, LARGE_COUNT))
            await memory.add_documents(documents(SMALL, SMALL_COUNT))
            result = await memory.maintain()
            assert result.indexes_built == 1

    with fresh_database(server_url, template) as url:
        asyncio.run(fill(url))
        yield url


@pytest.fixture(params=["postgresql", "postgresql+psycopg"], ids=["asyncpg", "psycopg"])
def filled_url(filled: str, request: pytest.FixtureRequest) -> str:
    return with_driver(filled, request.param)


@pytest.fixture
async def memory(filled_url: str, make_memory: MakeMemory) -> AsyncMemory:
    return make_memory(filled_url, embedder=ClusteredEmbedder(), settings=SETTINGS)


@pytest.fixture
async def exact(filled_url: str, make_memory: MakeMemory) -> AsyncMemory:
    """A memory that knows of no index."""
    memory = make_memory(filled_url, embedder=ClusteredEmbedder(), settings=SETTINGS)
    await memory.initialize()
    memory._indexes._known = {}
    return memory


@pytest.fixture
async def engine(filled: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(filled),
        poolclass=NullPool,
    )
    yield engine
    await engine.dispose()


@pytest.fixture
def explained(engine: AsyncEngine) -> AsyncMemory:
    return AsyncMemory(engine=engine, embedder=ClusteredEmbedder(), settings=SETTINGS)


async def test_a_large_owner_is_searched_through_its_index(
    explained: AsyncMemory, plans: Any
) -> None:
    await explained.search(LARGE, QUERY, search_type="vector")
    assert INDEX in indexes_read(plans())
    assert most_rows(plans(), "embeddings") <= 11  # One more shows that it is no equal.


async def test_a_small_owner_is_searched_exactly(explained: AsyncMemory, plans: Any) -> None:
    await explained.search(SMALL, QUERY, search_type="vector")
    assert INDEX not in indexes(plans())
    assert most_rows(plans(), "embeddings") == SMALL_COUNT


async def test_a_filter_that_leaves_half_is_put_to_what_the_index_gives(
    explained: AsyncMemory, plans: Any
) -> None:
    await explained.search(LARGE, QUERY, search_type="vector", metadata_filter={"half": True})
    assert INDEX in indexes_read(plans())
    assert most_rows(plans(), "embeddings") <= 11  # One more shows that it is no equal.


async def test_what_a_selective_filter_leaves_is_read_exactly(
    explained: AsyncMemory, plans: Any
) -> None:
    await explained.search(LARGE, QUERY, search_type="vector", metadata_filter={"rare": True})
    assert "ix_documents_owner_id_metadata" in indexes_read(plans())
    reads = [
        node["Actual Rows"] * node["Actual Loops"]
        for node in plans()
        if node.get("Relation Name") == "embeddings"
    ]
    assert sum(reads) == LARGE_COUNT / 200


async def test_an_exact_search_never_takes_the_index(filled: str, engine: AsyncEngine) -> None:
    memory = AsyncMemory(engine=engine, embedder=ClusteredEmbedder(), settings=SETTINGS)
    await memory.initialize()
    memory._indexes._known = {}
    hits = await memory.search(LARGE, QUERY, search_type="vector", limit=500)
    assert len(hits) == 500
    assert len({hit.chunk_id for hit in hits}) == 500


@pytest.mark.parametrize("metadata_filter", [None, {"half": True}, {"rare": True}])
@pytest.mark.parametrize("limit", [10, 100])
async def test_hits_are_those_of_an_exact_search(
    memory: AsyncMemory, exact: AsyncMemory, metadata_filter: Any, limit: int
) -> None:
    found = expected = 0
    for number in range(20):
        options: dict[str, Any] = {
            "search_type": "vector",
            "limit": limit,
            "metadata_filter": metadata_filter,
        }
        query = f"cluster {number * 3} number {100_000 + number}"
        right = await exact.search(LARGE, query, **options)
        hits = await memory.search(LARGE, query, **options)
        assert len(hits) == len(right)
        assert [hit.vector_rank for hit in hits] == list(range(1, len(hits) + 1))
        assert sorted(hits, key=lambda hit: -hit.score) == hits
        found += len(ids(hits) & ids(right))
        expected += len(right)
    assert found / expected >= 0.98


@pytest.mark.parametrize(
    ("limit", "offset", "metadata_filter", "matching"),
    [
        (1000, 0, None, 1000),
        (1000, 2500, None, 500),
        (1000, 0, {"half": True}, 1000),
        (1000, 1000, {"half": True}, 500),
        (1000, 0, {"rare": True}, 15),
        (10, 0, {"number": 77}, 1),
        (10, 0, {"number": -1}, 0),
    ],
)
async def test_never_fewer_hits_than_match(
    memory: AsyncMemory, limit: int, offset: int, metadata_filter: Any, matching: int
) -> None:
    hits = await memory.search(
        LARGE,
        QUERY,
        search_type="vector",
        limit=limit,
        offset=offset,
        metadata_filter=metadata_filter,
    )
    assert len(ids(hits)) == matching


@pytest.mark.parametrize("query", ['"number 5"', "cluster 3 number 5 -1"])
async def test_conditions_of_words_hold(
    memory: AsyncMemory, exact: AsyncMemory, query: str
) -> None:
    # Words that the embedder can read, with conditions behind them.
    query = f"cluster 3 number 5 {query}"
    hits = await memory.search(LARGE, query, limit=50)
    assert hits
    assert ids(hits) == ids(await exact.search(LARGE, query, limit=50))


@pytest.mark.parametrize("metadata_filter", [None, {"half": True}, {"rare": True}])
async def test_words_of_an_owner_with_an_index(
    memory: AsyncMemory, exact: AsyncMemory, metadata_filter: Any
) -> None:
    for query in ("cluster 3 number 5", "number"):
        options: dict[str, Any] = {"search_type": "text", "metadata_filter": metadata_filter}
        hits = await memory.search(LARGE, query, **options)
        assert len(hits) == 10
        right = await exact.search(LARGE, query, **options)
        assert [hit.lexical_score for hit in hits] == [hit.lexical_score for hit in right]


async def test_where_the_index_gives_too_little_all_is_read(
    filled_url: str, make_memory: MakeMemory
) -> None:
    settings = SETTINGS.model_copy(update={"hnsw_max_scan_tuples": 1, "hnsw_ef_search": 1})
    memory = make_memory(filled_url, embedder=ClusteredEmbedder(), settings=settings)
    for metadata_filter in (None, {"half": True}):
        hits = await memory.search(
            LARGE, QUERY, search_type="vector", limit=1000, metadata_filter=metadata_filter
        )
        assert len(ids(hits)) == 1000


async def test_round_trips(memory: AsyncMemory, round_trips: Any) -> None:
    for owner in (LARGE, SMALL):
        await memory.search(owner, QUERY)
    with round_trips(memory) as sent:
        await memory.search(SMALL, QUERY)
    assert len(sent) == 1
    for options in ({}, {"search_type": "vector"}, {"metadata_filter": {"half": True}}):
        with round_trips(memory) as sent:
            await memory.search(LARGE, QUERY, **options)
        assert len(sent) == 3
        assert sent[0].startswith("BEGIN; SET LOCAL hnsw.ef_search = ")
        assert sent[2] == "COMMIT"
    with round_trips(memory) as sent:
        await memory.search(LARGE, QUERY, search_type="text")
    assert len(sent) == 1
    # What passes no filter is known as well.
    for round_trips_each in (3, 1):
        with round_trips(memory) as sent:
            assert await memory.search(LARGE, QUERY, metadata_filter={"number": -1}) == []
        assert len(sent) == round_trips_each


async def test_a_filter_that_is_asked_again_is_not_tried_out_again(
    memory: AsyncMemory, explained: AsyncMemory, plans: Any, round_trips: Any
) -> None:
    rare: dict[str, Any] = {"metadata_filter": {"rare": True}, "search_type": "vector"}
    await memory.search(LARGE, QUERY, **rare)
    with round_trips(memory) as sent:
        await memory.search(LARGE, QUERY, **rare)
    assert len(sent) == 1
    half: dict[str, Any] = {"metadata_filter": {"half": True}, "search_type": "vector"}
    for _ in range(2):
        plans().clear()
        await explained.search(LARGE, QUERY, **half)
    assert most_rows(plans(), "chunks") == 1


@pytest.mark.parametrize("share", ["half", "rare"])
@pytest.mark.parametrize("believed", [0, 10**6])
@pytest.mark.parametrize("search_type", ["vector", "hybrid"])
async def test_what_is_believed_of_a_filter_changes_no_hit(
    memory: AsyncMemory, exact: AsyncMemory, share: str, believed: int, search_type: str
) -> None:
    options: dict[str, Any] = {
        "metadata_filter": {share: True},
        "search_type": search_type,
        "limit": 15,
    }
    right = await exact.search(LARGE, QUERY, **options)
    filters = checked_filters(memory.settings, metadata_filter={share: True})
    memory._indexes.filters.put_passing(LARGE, filters, "", believed)
    hits = await memory.search(LARGE, QUERY, **options)
    assert len(hits) == len(right) == 15
    assert len(ids(hits) & ids(right)) >= 14


@pytest.mark.parametrize("search_type", ["vector", "hybrid"])
@pytest.mark.parametrize(("share", "passing"), [("half", 150), ("rare", 2)])
async def test_without_an_index_every_way_finds_the_same(
    memory: AsyncMemory, share: str, passing: int, search_type: str
) -> None:
    options: dict[str, Any] = {"search_type": search_type, "limit": 7}
    everything = await memory.search(SMALL, QUERY, search_type=search_type, limit=SMALL_COUNT)
    right = [hit.chunk_id for hit in everything if hit.metadata.get(share)]
    assert len(right) == passing
    key = {"metadata_filter": {share: True}}
    filters = checked_filters(memory.settings, **key)
    known = memory._indexes.filters
    for believed in (None, (0, 0), (SMALL_COUNT, SMALL_COUNT)):
        if believed is not None:
            known.put_passing(SMALL, filters, "", *believed)
        found: list[str] = []
        for offset in range(0, passing + 7, 7):
            hits = await memory.search(SMALL, QUERY, **options, **key, offset=offset)
            found += [hit.chunk_id for hit in hits]
            if believed is None:
                learned = known.get(SMALL, filters)
                assert learned is not None
                assert learned.passing == passing
                assert learned.total == (SMALL_COUNT if passing > 16 else 0)
                known._known = Recent(1)
        if search_type == "vector":
            assert found == right
        assert sorted(found) == sorted(right)


@pytest.mark.parametrize(("key", "is_wide"), [("half", True), ("scattered", False)])
async def test_a_filter_that_goes_with_meaning_is_searched_more_widely(
    memory: AsyncMemory,
    exact: AsyncMemory,
    round_trips: Any,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    is_wide: bool,
) -> None:
    monkeypatch.setattr(index_use, "NEAR", 1000)
    options: dict[str, Any] = {"search_type": "vector", "metadata_filter": {key: True}}
    await memory.initialize()
    for number in range(PROBES + 2):
        query = f"cluster {number * 3} number {100_000 + number}"
        with round_trips(memory) as sent:
            hits = await memory.search(LARGE, query, **options)
        assert len(sent) == 3
        assert ids(hits) == ids(await exact.search(LARGE, query, **options))
    assert ("hnsw.ef_search = 100;" not in sent[0]) is is_wide
    filters = checked_filters(memory.settings, metadata_filter={key: True})
    known = memory._indexes.filters.get(LARGE, filters)
    assert known is not None
    around = [near / NEAREST for near in known.near.values()]
    assert all(0.3 < share < 0.7 for share in around) is not is_wide


@pytest.mark.parametrize("failure", ["error", "cancelled"])
async def test_nothing_is_left_set(
    filled: str, filled_url: str, make_memory: MakeMemory, failure: str
) -> None:
    settings = SETTINGS.model_copy(update={"pool_size": 1, "pool_overflow": 0})
    memory = make_memory(filled_url, embedder=ClusteredEmbedder(), settings=settings)
    await memory.search(LARGE, QUERY)
    assert await left_behind(memory, filled) == UNTOUCHED
    with psycopg.connect(filled) as blocker:
        blocker.execute("LOCK TABLE llmemory.documents")
        async with anyio.create_task_group() as group:

            async def search() -> None:
                with suppress(StorageError):
                    await memory.search(LARGE, QUERY)

            group.start_soon(search)
            await until(lambda: fetch(filled, WAITING))
            if failure == "error":
                assert fetch(filled, f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) AS waiting")
            else:
                group.cancel_scope.cancel()
    # A connection that was given up takes a moment to end on the server.
    await until(lambda: fetch(filled, OPEN_TRANSACTIONS) == [(0,)])
    assert await left_behind(memory, filled) == UNTOUCHED
    assert len(await memory.search(LARGE, QUERY)) == 10


async def test_a_callers_transaction_keeps_its_settings(memory: AsyncMemory) -> None:
    await memory.initialize()
    engine = await memory._database.engine()
    in_transactions = engine.execution_options(isolation_level="READ COMMITTED")
    async with AsyncSession(in_transactions) as session:
        await session.execute(text("SET LOCAL hnsw.ef_search = 77"))
        hits = await memory.search(LARGE, QUERY, session=session)
        assert len(hits) == 10
        assert (await session.execute(text("SHOW hnsw.ef_search"))).scalar_one() == "77"
        assert (await session.execute(text("SHOW hnsw.iterative_scan"))).scalar_one() == "off"


async def test_a_callers_connection_may_be_fresh_or_in_autocommit(memory: AsyncMemory) -> None:
    await memory.initialize()
    engine = await memory._database.engine()
    for level in ("READ COMMITTED", "AUTOCOMMIT"):
        async with engine.execution_options(isolation_level=level).connect() as connection:
            assert len(await memory.search(LARGE, QUERY, session=connection)) == 10


async def test_the_index_of_another_owner_is_not_asked(memory: AsyncMemory) -> None:
    assert await memory.search("nobody", QUERY) == []
    assert ids(await memory.search(SMALL, QUERY, limit=5)).isdisjoint(
        ids(await memory.search(LARGE, QUERY, limit=1000))
    )


async def left_behind(memory: AsyncMemory, url: str) -> tuple[Any, ...]:
    """Return the settings of the memory's one connection, and how many transactions are open."""
    async with memory._database.connect() as connection:
        settings = (await connection.execute(text(SETTINGS_NOW))).one()
    return (*settings, *fetch(url, OPEN_TRANSACTIONS)[0])


def ids(hits: list[SearchResult]) -> set[str]:
    return {hit.chunk_id for hit in hits}
