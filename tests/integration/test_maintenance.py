"""Upkeep: indexes are built, rebuilt and dropped; words are counted; the planner is told."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
from integration.clusters import DIMENSIONS, LARGE, SETTINGS, ClusteredEmbedder, documents
from integration.helpers import fetch, until
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, ConfigurationError, MaintenanceProgress
from llmemory.statements.vector_indexes import index_name

pytestmark = pytest.mark.anyio

QUERY = "cluster 3 number 100003"
COUNT = 1200
INDEXES = (
    "SELECT c.relname::text, indisvalid FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid "
    "WHERE c.relname LIKE 'hnsw%' ORDER BY 1"
)
BUILDING = (
    "SELECT pid FROM pg_stat_progress_create_index "
    "WHERE datname = current_database() AND phase LIKE 'waiting%'"
)
BEGUN = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
async def memory(driver_url: str, make_memory: MakeMemory) -> AsyncMemory:
    return make_memory(driver_url, embedder=ClusteredEmbedder(), settings=SETTINGS)


@pytest.fixture
def reopened(driver_url: str, make_memory: MakeMemory) -> Callable[..., AsyncMemory]:
    """Make a memory on the same database with other settings."""

    def make(**settings: Any) -> AsyncMemory:
        changed = SETTINGS.model_copy(update=settings)
        return make_memory(driver_url, embedder=ClusteredEmbedder(), settings=changed)

    return make


async def test_an_index_comes_when_it_pays_and_goes_when_it_does_not(
    memory: AsyncMemory, reopened: Callable[..., AsyncMemory], database_url: str
) -> None:
    await memory.add_documents(documents(LARGE, 900))
    assert (await memory.maintain()).indexes_built == 0
    await memory.add_documents(documents(LARGE, 200))
    seen: list[MaintenanceProgress] = []
    assert (await memory.maintain(on_progress=seen.append)).indexes_built == 1
    assert {"building an index"} <= {progress.step for progress in seen}
    assert all(0 <= progress.done <= progress.total for progress in seen)
    name = index_name(LARGE, 1, "halves")
    assert fetch(database_url, INDEXES) == [(name, True)]
    definition = fetch(database_url, "SELECT pg_get_indexdef(%s::regclass)", f"llmemory.{name}")
    assert f"halfvec({DIMENSIONS})" in definition[0][0]
    again = await memory.maintain()
    assert (again.indexes_built, again.indexes_dropped) == (0, 0)
    # Somewhat smaller it stays, far smaller it goes.
    assert (await reopened(hnsw_owner_vectors=4000).maintain()).indexes_dropped == 0
    assert (await reopened(hnsw_owner_vectors=4800).maintain()).indexes_dropped == 1
    assert fetch(database_url, INDEXES) == []
    assert len(await memory.search(LARGE, QUERY)) == 10


async def test_the_largest_owners_come_first(
    memory: AsyncMemory, reopened: Callable[..., AsyncMemory], database_url: str
) -> None:
    for number, owner in enumerate(("one", "two", "three")):
        await memory.add_documents(documents(owner, 100 + number))
    result = await reopened(hnsw_owner_vectors=100, hnsw_max_indexes=2).maintain()
    assert (result.indexes_built, result.owners_left_out) == (2, 1)
    assert {name for name, _ in fetch(database_url, INDEXES)} == {
        index_name(owner, 1, "halves") for owner in ("two", "three")
    }


async def test_an_invalid_index_is_built_anew(memory: AsyncMemory, database_url: str) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    await memory.maintain()
    fetch(
        database_url,
        "UPDATE pg_index SET indisvalid = false FROM pg_class AS c "
        "WHERE c.oid = indexrelid AND c.relname LIKE 'hnsw%'",
    )
    memory._indexes.forget()
    assert len(await memory.search(LARGE, QUERY, search_type="vector", limit=100)) == 100
    result = await memory.maintain()
    assert (result.indexes_built, result.indexes_dropped) == (1, 1)
    assert fetch(database_url, INDEXES) == [(index_name(LARGE, 1, "halves"), True)]


async def test_a_build_that_dies_leaves_searches_right(
    memory: AsyncMemory, database_url: str
) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    right = await memory.search(LARGE, QUERY, limit=20)
    with psycopg.connect(database_url) as writer:
        # A build waits for it to end.
        writer.execute("UPDATE llmemory.embeddings SET owner_id = owner_id WHERE false")
        async with anyio.create_task_group() as group:

            async def maintain() -> None:
                with suppress(Exception):
                    await memory.maintain()

            group.start_soon(maintain)
            await until(lambda: fetch(database_url, BUILDING))
            # Another run does not wait for the first.
            assert (await memory.maintain()).is_busy
            fetch(database_url, f"SELECT pg_terminate_backend(pid) FROM ({BUILDING}) AS building")
    assert [valid for _, valid in fetch(database_url, INDEXES)] == [False]
    assert await memory.search(LARGE, QUERY, limit=20) == right
    result = await memory.maintain()
    assert (result.indexes_built, result.indexes_dropped) == (1, 1)
    assert [valid for _, valid in fetch(database_url, INDEXES)] == [True]


async def test_a_cancelled_run_frees_the_lock(memory: AsyncMemory, database_url: str) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    with psycopg.connect(database_url) as writer:
        writer.execute("UPDATE llmemory.embeddings SET owner_id = owner_id WHERE false")
        async with anyio.create_task_group() as group:
            group.start_soon(memory.maintain)
            await until(lambda: fetch(database_url, BUILDING))
            group.cancel_scope.cancel()
    await until(lambda: fetch(database_url, LOCKS) == [(0,)])
    # The server may go on with what nobody waits for, behind a pooler also without the lock.
    await until(lambda: not fetch(database_url, BEGUN))
    assert not (await memory.maintain()).is_busy
    assert fetch(database_url, INDEXES) == [(index_name(LARGE, 1, "halves"), True)]


async def test_signs_with_rescoring(
    memory: AsyncMemory, reopened: Callable[..., AsyncMemory], database_url: str
) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    by_signs = reopened(hnsw_signs=True)
    assert (await memory.maintain()).indexes_built == 1
    result = await by_signs.maintain()
    assert (result.indexes_built, result.indexes_dropped) == (1, 1)
    assert fetch(database_url, INDEXES) == [(index_name(LARGE, 1, "signs"), True)]
    exact = reopened(hnsw_refresh_s=1000)
    await exact.initialize()
    exact._indexes._known = {}
    found = 0
    for number in range(20):
        query = f"cluster {number} number {100_000 + number}"
        right = await exact.search(LARGE, query, search_type="vector")
        hits = await by_signs.search(LARGE, query, search_type="vector")
        assert len(hits) == 10
        found += len({hit.chunk_id for hit in hits} & {hit.chunk_id for hit in right})
    assert found / 200 >= 0.97


async def test_vectors_beyond_4000_dimensions(database_url: str, make_memory: MakeMemory) -> None:
    settings = SETTINGS.model_copy(update={"hnsw_owner_vectors": 200})
    memory = make_memory(embedder=ClusteredEmbedder(4100), settings=settings)
    await memory.add_documents(documents(LARGE, 200))
    assert (await memory.maintain()).indexes_built == 1
    assert fetch(database_url, INDEXES) == [(index_name(LARGE, 1, "signs"), True)]
    hits = await memory.search(LARGE, "cluster 21 number 3", search_type="vector")
    assert len(hits) == 10
    assert hits[0].content == "cluster 21 number 3"


async def test_alembic_sees_no_index_of_ours(
    memory: AsyncMemory, database_url: str, tmp_path: Any
) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    await memory.maintain()
    checked = subprocess.run(
        [sys.executable, "-m", "alembic", "check"],
        env={**os.environ, "LLMEMORY_DATABASE_URL": database_url, "LLMEMORY_EMBEDDER": "hash"},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_words_of_large_owners_are_counted(
    memory: AsyncMemory, reopened: Callable[..., AsyncMemory], database_url: str
) -> None:
    await memory.add_documents(documents(LARGE, COUNT))
    await memory.add_documents(documents("small", 400))
    hits = await memory.search(LARGE, "cluster 21 number 3", search_type="text", limit=50)
    settings = {"word_count_minimum": 1000, "hnsw_max_indexes": 0}
    assert (await reopened(**settings).maintain()).owners_counted == 1
    counts = "SELECT owner_id, term = 0, chunk_count FROM llmemory.lexical_statistics ORDER BY 2"
    # "cluster" and "number" are in every chunk; no number is.
    assert fetch(database_url, counts) == [(LARGE, False, COUNT)] * 2 + [(LARGE, True, COUNT)]
    assert await memory.search(LARGE, "cluster 21 number 3", search_type="text", limit=50) == hits
    await memory.delete_documents(LARGE, metadata_filter={"half": True})
    assert (await reopened(**settings).maintain()).owners_counted == 1
    assert fetch(database_url, counts) == [(LARGE, True, COUNT // 2)]
    assert (await reopened(word_count_chunks=COUNT + 1).maintain()).owners_counted == 0
    assert fetch(database_url, counts) == []


async def test_the_planner_knows_what_was_added(
    reopened: Callable[..., AsyncMemory], database_url: str
) -> None:
    memory = reopened(hnsw_max_indexes=0)
    await memory.initialize()
    for table in ("documents", "chunks", "embeddings"):
        # Or the server tells the planner as well, once a minute.
        fetch(database_url, f"ALTER TABLE llmemory.{table} SET (autovacuum_enabled = false)")
    rows = (
        "SELECT relname::text, reltuples FROM pg_class WHERE relkind = 'r' "
        "AND relname IN ('documents', 'chunks', 'embeddings') ORDER BY 1"
    )
    await memory.add_documents(documents("small", 900))
    assert {count for _, count in fetch(database_url, rows)} == {-1}
    await memory.add_documents(documents("large", 1000))
    assert {count for _, count in fetch(database_url, rows)} == {1900}
    await memory.add_documents(documents("large", 900))
    await memory.add_documents(documents("larger", 990))
    assert {count for _, count in fetch(database_url, rows)} == {1900}
    assert (await memory.maintain()).tables_analyzed == []
    await memory.add_documents(documents("largest", 400))
    assert (await memory.maintain()).tables_analyzed == ["documents", "chunks", "embeddings"]
    assert {count for _, count in fetch(database_url, rows)} == {4190}


async def test_it_needs_the_owner_of_the_tables(
    memory: AsyncMemory, database_url: str, make_memory: MakeMemory
) -> None:
    await memory.initialize()
    role = f"llmemory_worker_{secrets.token_hex(6)}"
    fetch(database_url, f"CREATE ROLE {role} LOGIN")
    try:
        fetch(database_url, f"GRANT USAGE ON SCHEMA llmemory TO {role}")
        fetch(
            database_url,
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA llmemory TO {role}",
        )
        url = database_url.replace("postgres@", f"{role}@", 1)
        worker = make_memory(url, embedder=ClusteredEmbedder(), settings=SETTINGS)
        with pytest.raises(ConfigurationError, match="owns its tables"):
            await worker.maintain()
        # ANALYZE is refused as well, which nobody needs to know.
        await worker.add_documents(documents("theirs", 1000))
        await worker.close()
    finally:
        fetch(database_url, f"DROP OWNED BY {role}")
        fetch(database_url, f"DROP ROLE {role}")


async def test_odd_names_of_schemas(driver_url: str, make_memory: MakeMemory) -> None:
    memory = make_memory(
        driver_url, schema='100% "odd":s', embedder=ClusteredEmbedder(), settings=SETTINGS
    )
    await memory.add_documents(documents(LARGE, COUNT))
    assert (await memory.maintain()).indexes_built == 1
    assert len(await memory.search(LARGE, QUERY, metadata_filter={"half": True})) == 10
