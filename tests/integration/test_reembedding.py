"""Changing the model: searches go on, and nothing that is added meanwhile is lost or mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import anyio
import anyio.to_thread
import pytest
from integration.clusters import LARGE, SETTINGS, ClusteredEmbedder, documents
from integration.helpers import PATIENCE_S, fetch, paragraphs, rows
from integration.reembedding import HEALED, OWNERS, Waiting, corpus, seen, states, under_way
from plugins.memories import MakeMemory
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from llmemory import (
    AsyncMemory,
    EmbedderMismatchError,
    HashEmbedder,
    MaintenanceProgress,
    Memory,
)
from llmemory.statements.vector_indexes import index_name

pytestmark = pytest.mark.anyio
QUERIES = ("rule 7 of section 3", "word21 section", "number 5", "section 11 word700")

SEARCH = """
import asyncio, json, sys
from llmemory import AsyncMemory, HashEmbedder

async def main():
    queries = json.loads(sys.argv[2])
    async with AsyncMemory(sys.argv[1], embedder=HashEmbedder(64)) as memory:
        waiting = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        print("ready", flush=True)
        found = set()
        while not waiting.done():
            for owner, query in queries:
                hits = await memory.search(owner, query, search_type="vector")
                found.add(json.dumps([owner, query, [(h.chunk_id, h.similarity) for h in hits]]))
        print(json.dumps([json.loads(entry) for entry in found]), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder(64)


async def test_searches_see_one_model_or_the_other(
    make_memory: MakeMemory, driver_url: str
) -> None:
    """Continuous searches in this memory and in another process: no error, nothing mixed."""
    memory = make_memory(driver_url)
    await memory.add_documents(corpus(1200))
    asked = [(owner, query) for owner in OWNERS for query in QUERIES]

    async def answers(of: AsyncMemory) -> dict[Any, Any]:
        return {key: seen(await of.search(*key, search_type="vector")) for key in asked}

    former = await answers(memory)
    found: list[tuple[Any, Any]] = []
    ended = anyio.Event()

    async def keep_searching() -> None:
        while not ended.is_set():
            for key in asked:
                found.append((key, seen(await memory.search(*key, search_type="vector"))))

    other = subprocess.Popen(
        [sys.executable, "-c", SEARCH, driver_url, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    with other:
        assert await anyio.to_thread.run_sync(other.stdout.readline) == "ready\n"
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(keep_searching)
            result = await memory.reembed(HashEmbedder(96))
            await anyio.sleep(0.1)
            ended.set()
        output, _ = await anyio.to_thread.run_sync(other.communicate, "\n")
    assert other.returncode == 0
    assert result.embeddings_created == 1200
    new = await answers(make_memory(driver_url, embedder=HashEmbedder(96)))
    assert all(former[key] != new[key] for key in asked)
    kinds = Counter(
        "former" if hits == former[key] else "new" if hits == new[key] else "mixed"
        for key, hits in found
    )
    assert kinds.keys() == {"former", "new"}
    # The other process has the former embedder still, and its vectors.
    theirs = json.loads(output)
    assert {(owner, query) for owner, query, _ in theirs} == set(asked)
    for owner, query, hits in theirs:
        assert [tuple(hit) for hit in hits] == former[owner, query]


def test_the_blocking_face_changes_too(database_url: str) -> None:
    with Memory(database_url, embedder=HashEmbedder(64)) as memory:
        memory.add_documents(corpus(60))
        progress: list[MaintenanceProgress] = []
        embedder = HashEmbedder(96)
        result = memory.reembed(embedder, drop_old=True, on_progress=progress.append)
        assert (result.space_id, result.replaced_space_id) == (2, 1)
        assert (result.embeddings_created, result.embeddings_dropped) == (60, 60)
        assert memory.embedder is embedder
        assert memory.search("acme", "rule 3", search_type="vector")
        assert embedder.texts == 61
        assert [step.step for step in progress][:1] == ["embedding"]
        assert all(0 <= step.done <= step.total for step in progress)
        assert {space.state for space in memory.list_spaces()} == {"dropped", "in use"}
        statistics = memory.get_statistics("acme")
        assert statistics.embeddings_by_space == {2: statistics.chunk_count}
        health = memory.health()
        assert (health.healthy, health.embedding_state) == (True, "in use")
        assert health.embedding_dimensions == 96


async def test_a_large_owner_has_its_index_before_the_switch(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory(embedder=ClusteredEmbedder(), settings=SETTINGS)
    await memory.add_documents(documents(LARGE, 1100))
    await memory.maintain()
    other = ClusteredEmbedder()
    other.model = "clusters again"
    names = [index_name(LARGE, space, "halves") for space in (1, 2)]
    indexes = "SELECT relname::text FROM pg_class WHERE relname LIKE 'hnsw%' ORDER BY 1"
    steps: list[tuple[str, Any]] = []

    def watch(progress: MaintenanceProgress) -> None:
        default = fetch(
            database_url, "SELECT space_id FROM llmemory.embedding_spaces WHERE is_default"
        )
        steps.append((progress.step, default[0][0]))

    result = await memory.reembed(other, on_progress=watch)
    assert result.indexes_built == 1
    assert ("building an index", 1) in steps
    assert fetch(database_url, indexes) == [(name,) for name in names]
    hits = await memory.search(LARGE, "cluster 3 number 100003", search_type="vector", limit=20)
    assert len(hits) == 20
    # The index of the former vectors stays as long as they do.
    again = await memory.maintain()
    assert (again.indexes_built, again.indexes_dropped) == (0, 0)
    assert await memory.drop_space(1) == 1100
    assert fetch(database_url, indexes) == [(names[1],)]


async def test_maintain_leaves_a_space_that_is_being_filled_alone(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory(embedder=ClusteredEmbedder(), settings=SETTINGS)
    await memory.add_documents(documents(LARGE, 1100))
    embedder = Waiting(freely=1000)
    indexes = "SELECT relname::text FROM pg_class WHERE relname LIKE 'hnsw%' ORDER BY 1"
    async with under_way(memory, embedder):
        assert (await memory.maintain()).indexes_built == 1
        assert fetch(database_url, indexes) == [(index_name(LARGE, 1, "halves"),)]
    assert len(fetch(database_url, indexes)) == 2


async def test_what_is_added_meanwhile_gets_both_vectors(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)
    await memory.add_documents(corpus(30))
    (first,) = (await memory.list_documents("acme", limit=1)).documents
    writer = make_memory(driver_url)
    embedder = Waiting()
    async with under_way(memory, embedder):
        await writer.add_document("acme", "now", "Added while vectors are made.")
        await writer.add_document("acme", "later", "Added for later.", embed="later")
        await writer.add_document("globex", "1", paragraphs("one", "two", "three"), external_id="1")
        await writer.delete_document("acme", first.document_id)
        assert (await writer.get_statistics("acme")).pending_embeddings == 1
        # Nothing of it is searched with vectors that are not complete.
        assert len(await writer.search("acme", "vectors made", search_type="vector")) > 0
    assert fetch(driver_url, HEALED.format(space=2)) == [(0,)]
    total = rows(driver_url)["chunks"]
    assert (await states(memory))[1] == (2, "in use", total, 0)
    assert (await memory.get_statistics("acme")).pending_embeddings == 0
    (hit,) = await memory.search("acme", "Added for later", search_type="vector", limit=1)
    assert hit.document_name == "later"


async def test_a_transaction_older_than_the_run_is_waited_for(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(10))
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
    waits = anyio.Event()

    def watch(progress: MaintenanceProgress) -> None:
        if progress.step == "waiting for transactions":
            waits.set()

    async def reembed() -> None:
        await memory.reembed(HashEmbedder(96), on_progress=watch)

    async with AsyncSession(engine) as session, anyio.create_task_group() as group:
        await memory.add_document("acme", "slow", "Committed late.", session=session, embed="now")
        group.start_soon(reembed)
        with anyio.fail_after(PATIENCE_S):
            await waits.wait()
        assert (await states(memory))[1][1] == "filling"
        await session.commit()
    await engine.dispose()
    assert await states(memory) == [(1, "replaced", 11, 0), (2, "in use", 11, 0)]


async def test_a_memory_with_the_former_embedder_works_on(
    make_memory: MakeMemory, driver_url: str
) -> None:
    former = make_memory(driver_url)
    await former.add_documents(corpus(30))
    memory = make_memory(driver_url)
    await memory.reembed(HashEmbedder(96))
    # One that is open, and one that is opened now.
    for number, old in enumerate((former, make_memory(driver_url))):
        await old.add_document("acme", f"late {number}", f"Zebra crossing {number}.")
        assert (await old.health()).embedding_state == "replaced"
        assert (await old.health()).healthy
        (hit,) = await old.search("acme", f"zebra {number}", search_type="vector", limit=1)
        assert hit.document_name == f"late {number}"
        assert fetch(driver_url, HEALED.format(space=2)) == [(0,)]
    # By its words it is found at once.
    assert len(await memory.search("acme", "zebra", search_type="text")) == 2
    assert (await memory.get_statistics("acme")).pending_embeddings == 2
    assert await memory.process_pending_embeddings() == 2
    assert (await states(memory))[1] == (2, "in use", 32, 0)
    # What the new one adds, the former one finds by words only.
    await memory.add_document("acme", "new", "Giraffe.")
    assert not (await former.search("acme", "giraffe", limit=1))[0].similarity
    assert (await states(memory))[0] == (1, "replaced", 32, 1)


async def test_back_to_the_former_model(make_memory: MakeMemory) -> None:
    former, memory = make_memory(), make_memory()
    await former.add_documents(corpus(30))
    await memory.reembed(HashEmbedder(96))
    await memory.add_document("acme", "new", "Giraffe.")
    back = Waiting(64)
    async with under_way(memory, back):
        # Searched with before, so also while the one vector is made that is missing.
        assert await former.search("acme", "rule 3", search_type="vector")
        health = await former.health()
        assert (health.healthy, health.embedding_state) == (True, "refilling")
    assert back.texts == 1
    assert await states(memory) == [(1, "in use", 31, 0), (2, "replaced", 31, 0)]
    (hit,) = await former.search("acme", "giraffe", search_type="vector", limit=1)
    assert hit.document_name == "new"


async def test_the_new_embedder_is_refused_until_the_switch(make_memory: MakeMemory) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(10))
    early = make_memory(embedder=HashEmbedder(96))
    with pytest.raises(EmbedderMismatchError, match="or reembed"):
        await early.initialize()
    async with under_way(memory, Waiting()):
        with pytest.raises(EmbedderMismatchError, match="still being made") as caught:
            await early.search("acme", "rule")
        assert caught.value.given == "hash/hash (96 dimensions)"
        assert caught.value.stored == "hash/hash (64 dimensions)"
        health = await early.health()
        assert (health.healthy, health.embedding_state) == (False, "filling")
        assert health.problem == str(caught.value)
    assert await early.search("acme", "rule", search_type="vector")


async def test_a_memory_with_the_new_embedder_may_call_it(make_memory: MakeMemory) -> None:
    await make_memory().add_documents(corpus(10))
    memory = make_memory(embedder=HashEmbedder(96))
    health = await memory.health()
    assert (health.healthy, health.embedding_state) == (False, None)
    assert (await memory.reembed()).embeddings_created == 10
    assert len(await memory.search("acme", "rule", search_type="vector")) == 4
    # What is complete is left alone.
    again = await memory.reembed()
    assert (again.embeddings_created, again.replaced_space_id) == (0, None)


async def test_an_empty_schema(make_memory: MakeMemory, empty_database_url: str) -> None:
    memory = make_memory(empty_database_url)
    result = await memory.reembed(HashEmbedder(96))
    assert (result.space_id, result.replaced_space_id) == (1, None)
    await memory.add_document("acme", "a", "Leave.")
    assert await states(memory) == [(1, "in use", 1, 0)]


async def test_a_provider_tells_prompts_apart(make_memory: MakeMemory) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(10))
    prompted = HashEmbedder(64)
    prompted.provider = "hash, second prompt"
    assert (await memory.reembed(prompted)).embeddings_created == 10
