"""What of PgBouncer's transaction mode the behaviour tests, which pass through it, do not show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import anyio
import numpy as np
import psycopg
import pytest
from integration.helpers import broken_documents, fetch, together, until
from plugins.memories import MakeMemory
from plugins.poolers import UNPREPARED, PgBouncer
from plugins.server import with_driver
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import AsyncMemory, ConfigurationError, HashEmbedder, Settings
from llmemory.maintenance import Maintenance

pytestmark = pytest.mark.anyio

CALLERS = 16
ROUNDS = 3
BEHIND = Settings(transaction_pooler=True)


@pytest.fixture(scope="module")
def pooler(make_pooler: Callable[..., PgBouncer]) -> PgBouncer:
    return make_pooler(default_pool_size=2)


@pytest.fixture
def pooled_url(pooler: PgBouncer, driver_url: str) -> str:
    return pooler.url(driver_url)


async def test_many_callers_on_two_sessions(
    make_memory: MakeMemory, pooler: PgBouncer, pooled_url: str, database_url: str
) -> None:
    few = {"hnsw_owner_vectors": 10, "hnsw_exact_chunks": 0, "pool_size": CALLERS}
    settings = BEHIND.model_copy(update=few)
    memory = make_memory(pooled_url, settings=settings)
    # With indexes searches bring settings along, in a transaction of two or three messages.
    await memory.add_documents(
        {"owner_id": f"owner{number}", "document_name": f"n{place}", "content": f"Start {place}."}
        for number in range(0, CALLERS, 2)
        for place in range(12)
    )
    assert (await memory.maintain()).indexes_built == CALLERS // 2
    await together(*(use_everything(memory, f"owner{number}") for number in range(CALLERS)))
    assert broken_documents(database_url) == []
    name = urlsplit(database_url).path[1:]
    used = [row for row in pooler.show("SERVERS") if row["database"] == name]
    assert len(used) == 2
    assert pooler.queries(name) > CALLERS * ROUNDS * 10


async def use_everything(memory: AsyncMemory, owner: str) -> None:
    """Call what there is to call, and compare each answer with what this owner must see."""
    for number in range(ROUNDS):
        word = f"{owner}word{number}"
        added = await memory.add_document(owner, "One", f"The {word} one.", external_id="one")
        assert added.status == ("replaced" if number else "created")
        later = await memory.add_document(owner, "Later", f"The {word} later.", embed="later")
        results = await memory.add_documents(
            {"owner_id": owner, "document_name": str(place), "content": f"{word} {place}."}
            for place in range(3)
        )
        assert [result.status for result in results] == ["created"] * 3
        for search_type in ("text", "vector", "hybrid"):
            hits = await memory.search(owner, word, search_type=search_type, limit=50)
            found = {hit.document_name for hit in hits if word in hit.content}
            assert found >= {"One", "0", "1", "2"}, search_type
        assert await memory.process_pending_embeddings(owner) == 1
        await memory.update_document(owner, later.document_id, document_name="Changed")
        changed = await memory.get_document(owner, later.document_id)
        assert changed is not None
        assert changed.document_name == "Changed"
        listed = await memory.list_documents(owner, metadata_filter={"none": 1})
        assert listed.total_count == 0
        grouped = await memory.search_with_documents(owner, f'"{word} later"')
        assert [document.document_name for document in grouped.documents] == ["Changed"]
        await memory.delete_document(owner, later.document_id)
        await memory.delete_documents(
            owner, document_ids=[result.document_id for result in results]
        )
        statistics = await memory.get_statistics(owner)
        assert statistics.document_count in {1, 13}
        assert statistics.pending_embeddings == 0


async def test_a_schema_is_made_by_one_of_many(make_memory: MakeMemory, pooled_url: str) -> None:
    memories = [make_memory(pooled_url, schema="new", settings=BEHIND) for _ in range(3)]
    await together(*(memory.initialize() for memory in memories))
    assert (await memories[0].health()).healthy


async def with_an_index_to_build(make_memory: MakeMemory, pooled_url: str) -> AsyncMemory:
    settings = BEHIND.model_copy(update={"hnsw_owner_vectors": 10})
    memory = make_memory(pooled_url, settings=settings, embedder=HashEmbedder(4))
    await memory.add_documents(
        {"owner_id": "acme", "document_name": "n", "content": f"Text {number}."}
        for number in range(20)
    )
    return memory


async def test_maintenance_is_done_by_one_of_many_and_leaves_no_lock(
    make_memory: MakeMemory, pooled_url: str, database_url: str
) -> None:
    memory = await with_an_index_to_build(make_memory, pooled_url)
    results = await together(*(memory.maintain() for _ in range(2)))
    assert sorted(result.is_busy for result in results) == [False, True]
    assert sum(result.indexes_built for result in results) == 1
    assert fetch(database_url, LOCKS) == [(0,)]
    # One that connects directly holds another kind of lock by the same name.
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_advisory_lock(hashtextextended('llmemory maintenance llmemory', 0))"
        )
        assert (await memory.maintain()).is_busy


async def test_what_a_killed_run_has_left_to_the_server_keeps_others_out(
    make_memory: MakeMemory, pooled_url: str, database_url: str
) -> None:
    memory = await with_an_index_to_build(make_memory, pooled_url)
    create = "CREATE INDEX CONCURRENTLY left_over ON llmemory.embeddings (space_id)"
    with ThreadPoolExecutor(1) as thread, psycopg.connect(database_url) as writer:
        # The build waits for whoever is writing.
        writer.execute("UPDATE llmemory.embeddings SET owner_id = owner_id WHERE false")
        left = thread.submit(fetch, database_url, create)
        await until(lambda: fetch(database_url, BUILDING))
        assert (await memory.maintain()).is_busy
        upkeep = Maintenance(memory._database, memory._tables, memory.settings)
        waiting = asyncio.create_task(upkeep.prepare_space(1))
        await until(lambda: fetch(database_url, LOCKS) == [(1,)])
        writer.commit()
        assert await waiting == 1
        left.result()
    assert not (await memory.maintain()).is_busy


BUILDING = (
    "SELECT pid FROM pg_stat_progress_create_index "
    "WHERE datname = current_database() AND phase LIKE 'waiting%'"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def test_nothing_is_left_in_the_sessions(make_memory: MakeMemory, pooled_url: str) -> None:
    settings = BEHIND.model_copy(update={"hnsw_owner_vectors": 2})
    memory = make_memory(pooled_url, settings=settings)
    for number in range(6):
        await memory.add_document("acme", f"n{number}", f"Days of leave {number}.")
    await memory.maintain()
    await memory.search("acme", "leave", metadata_filter={"a": {"$gte": 1}})
    stop = anyio.Event()
    worker = asyncio.create_task(memory.run_worker(should_stop=stop.is_set))
    await anyio.sleep(0.3)
    async with memory._database.connect() as first, memory._database.connect() as second:
        for connection in (first, second):
            # In a transaction, so that the two are not the same session.
            await connection.execute(text("BEGIN"))
        for connection in (first, second):
            left = await connection.execute(LEFT)
            assert left.all() == []
            await connection.execute(text("COMMIT"))
    stop.set()
    await worker


LEFT = text(
    "SELECT 'statement', name FROM pg_prepared_statements WHERE name <> '' "
    "UNION ALL SELECT 'channel', name FROM pg_listening_channels() AS name "
    "UNION ALL SELECT 'setting', name FROM pg_settings WHERE source = 'session' "
    "AND name NOT IN ('application_name', 'client_encoding') "
    "UNION ALL SELECT 'table', relname::text FROM pg_class WHERE relpersistence = 't'"
)


async def test_a_worker_looks_for_itself(
    make_memory: MakeMemory, pooled_url: str, database_url: str
) -> None:
    settings = BEHIND.model_copy(update={"job_poll_s": 0.2})
    memory = make_memory(pooled_url, settings=settings)
    await memory.initialize()
    with anyio.fail_after(10):
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: memory.run_worker(should_stop=stop.is_set))
            await anyio.sleep(0.3)
            await memory.add_document("acme", "n", "Days of leave.", embed="later")
            while (await memory.get_statistics("acme")).pending_embeddings:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            stop.set()


async def test_who_does_not_say_so_is_told(
    make_memory: MakeMemory, pooler: PgBouncer, database_url: str
) -> None:
    memory = make_memory(pooler.url(database_url))
    with pytest.raises(ConfigurationError, match="transaction_pooler"):
        await together(*(use_everything(memory, f"owner{number}") for number in range(CALLERS)))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_engine_of_yours(
    make_memory: MakeMemory, pooler: PgBouncer, database_url: str, driver: str
) -> None:
    engine = create_async_engine(
        with_driver(pooler.url(database_url), f"postgresql+{driver}"),
        connect_args=UNPREPARED[driver],
        pool_size=CALLERS,
    )
    memory = make_memory(engine=engine, settings=BEHIND)
    await together(*(use_everything(memory, f"owner{number}") for number in range(CALLERS)))
    await engine.dispose()


async def test_vectors_are_those_that_were_sent(
    make_memory: MakeMemory, pooled_url: str, database_url: str
) -> None:
    embedder = HashEmbedder(8)
    memory = make_memory(pooled_url, settings=BEHIND, embedder=embedder)
    await memory.add_document("acme", "n", "Days of leave.")
    ((stored,),) = fetch(database_url, "SELECT embedding::text FROM llmemory.embeddings")
    (sent,) = await embedder.embed(["Days of leave."], purpose="document")
    assert np.allclose(np.fromstring(stored.strip("[]"), sep=","), sent, atol=1e-3)
