"""Changing the model: searches go on, nothing is lost or mixed, and a run can end anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from integration.clusters import LARGE, SETTINGS, ClusteredEmbedder, documents
from integration.helpers import fetch, paragraphs, rows, together, until
from plugins.memories import MakeMemory
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    ConflictError,
    EmbedderMismatchError,
    EmbeddingError,
    HashEmbedder,
    MaintenanceProgress,
    Memory,
    SearchResult,
    Settings,
    ValidationError,
)
from llmemory.statements.vector_indexes import index_name

pytestmark = pytest.mark.anyio

OWNERS = ("acme", "globex", "initech")
QUERIES = ("rule 7 of section 3", "word21 section", "number 5", "section 11 word700")
HEALED = (
    "SELECT count(*) FROM llmemory.chunks AS c WHERE NOT EXISTS (SELECT FROM llmemory.embeddings "
    "AS e WHERE e.owner_id = c.owner_id AND e.chunk_id = c.chunk_id AND e.space_id = {space}) "
    "AND NOT EXISTS (SELECT FROM llmemory.embedding_jobs AS j WHERE j.owner_id = c.owner_id "
    "AND j.document_id = c.document_id AND j.space_id = {space})"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

REEMBED = """
import asyncio, sys, time
from llmemory import AsyncMemory, HashEmbedder, Settings

class Logging(HashEmbedder):
    async def embed(self, texts, *, purpose):
        made = await super().embed(texts, purpose=purpose)
        if purpose == "document":
            with open(sys.argv[2], "a") as log:
                log.writelines(f"{text}\\n" for text in texts)
            await asyncio.sleep(0.02)
        return made

async def main():
    settings = Settings.from_env(embedding_batch_size=16)
    async with AsyncMemory(sys.argv[1], embedder=HashEmbedder(64), settings=settings) as memory:
        await memory.reembed(Logging(96))

asyncio.run(main())
"""

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


class Waiting(HashEmbedder):
    """Embeds no document before the test says so, but for the first ``freely``."""

    def __init__(self, dimensions: int = 96, *, freely: int = 0) -> None:
        super().__init__(dimensions)
        self.freely = freely
        self.arrived = anyio.Event()
        self.gate = anyio.Event()

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if purpose == "document" and self.texts >= self.freely:
            self.arrived.set()
            await self.gate.wait()
        return await super().embed(texts, purpose=purpose)


class Failing(HashEmbedder):
    """Fails once it has embedded some texts, until it is mended."""

    def __init__(self, dimensions: int, after: int) -> None:
        super().__init__(dimensions)
        self.after: int | None = after

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if self.after is not None and self.texts >= self.after:
            raise EmbeddingError("out of order")
        return await super().embed(texts, purpose=purpose)


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder(64)


def corpus(count: int) -> list[dict[str, Any]]:
    return [
        {
            "owner_id": OWNERS[number % 3],
            "document_name": str(number),
            "content": f"rule {number} of section {number % 17}, word{number * 7 % 1000}",
            "external_id": number,
        }
        for number in range(count)
    ]


def seen(hits: Sequence[SearchResult]) -> list[tuple[str, float | None]]:
    return [(hit.chunk_id, hit.similarity) for hit in hits]


async def states(memory: AsyncMemory) -> list[tuple[int, str, int, int]]:
    return [
        (space.space_id, space.state, space.vectors, space.missing)
        for space in await memory.list_spaces()
    ]


@asynccontextmanager
async def under_way(memory: AsyncMemory, embedder: Waiting) -> AsyncIterator[None]:
    """Have reembed wait for its embedder within the block, and end after it."""
    async with anyio.create_task_group() as group:
        group.start_soon(memory.reembed, embedder)
        with anyio.fail_after(20):
            await embedder.arrived.wait()
        yield
        embedder.gate.set()


# -- searches ------------------------------------------------------------------------------------


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


# -- what is written meanwhile -------------------------------------------------------------------


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
        with anyio.fail_after(20):
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


# -- ending anywhere -----------------------------------------------------------------------------


async def test_killed_it_goes_on_without_embedding_again(
    make_memory: MakeMemory, database_url: str, tmp_path: Path
) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(400))
    log = tmp_path / "embedded.txt"
    arguments = [sys.executable, "-c", REEMBED, database_url, log]
    done = "SELECT count(*) FROM llmemory.embeddings WHERE space_id = 2"
    for wanted in (100, 250):
        process = subprocess.Popen(arguments)
        await until(lambda wanted=wanted: fetch(database_url, done)[0][0] >= wanted)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (await states(memory))[1][1] == "filling"
    stored = fetch(database_url, done)[0][0]
    assert 250 <= stored < 400
    before = len(log.read_text().splitlines())
    embedder = HashEmbedder(96)
    result = await memory.reembed(embedder)
    assert result.embeddings_created == embedder.texts == 400 - stored
    # Twice only what was under way when it was killed, a batch each time.
    assert 400 <= before + embedder.texts <= 400 + 2 * 16
    assert await states(memory) == [(1, "replaced", 400, 0), (2, "in use", 400, 0)]


async def test_several_runs_share_the_work(make_memory: MakeMemory) -> None:
    memories = [make_memory() for _ in range(3)]
    await memories[0].add_documents(corpus(200))
    embedders = [HashEmbedder(96) for _ in memories]
    results = await together(
        *(memory.reembed(one) for memory, one in zip(memories, embedders, strict=True))
    )
    assert sum(one.texts for one in embedders) == 200
    assert sorted(result.embeddings_created for result in results) == [0, 0, 200]
    assert [result.space_id for result in results] == [2, 2, 2]
    for memory, one in zip(memories, embedders, strict=True):
        assert memory.embedder is one
        assert await memory.search("acme", "rule 3", search_type="vector")


async def test_cancelled_it_leaves_nothing_held(make_memory: MakeMemory, database_url: str) -> None:
    memory = make_memory(settings=Settings(embedding_batch_size=10))
    await memory.add_documents(corpus(50))
    embedder = Waiting(freely=20)
    async with anyio.create_task_group() as group:
        group.start_soon(memory.reembed, embedder)
        with anyio.fail_after(20):
            await embedder.arrived.wait()
        group.cancel_scope.cancel()
    assert fetch(database_url, LOCKS) == [(0,)]
    assert memory.embedder is not embedder
    assert (await states(memory))[1] == (2, "filling", 20, 30)
    assert await memory.search("acme", "rule 3", search_type="vector")
    embedder.gate.set()
    assert (await memory.reembed(embedder)).embeddings_created == 30


async def test_an_embedder_that_fails_loses_nothing(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(embedding_batch_size=10))
    await memory.add_documents(corpus(50))
    former = memory.embedder
    embedder = Failing(96, after=20)
    with pytest.raises(EmbeddingError, match="out of order"):
        await memory.reembed(embedder)
    assert memory.embedder is former
    embedder.after = None
    assert (await memory.reembed(embedder)).embeddings_created == 30
    assert memory.embedder is embedder


# -- which embedder may be used ------------------------------------------------------------------


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


# -- dropping ------------------------------------------------------------------------------------


async def test_dropped_vectors_are_not_searched(make_memory: MakeMemory, driver_url: str) -> None:
    former = make_memory(driver_url)
    await former.add_documents(corpus(30))
    await former.add_document("acme", "later", "For later.", embed="later")
    memory = make_memory(driver_url)
    await memory.reembed(HashEmbedder(96))
    assert await memory.drop_space(1) == 30
    before = rows(driver_url)
    for call in (
        former.search("acme", "rule 3"),
        former.search("acme", "rule 3", search_type="vector"),
        former.search("nobody", "rule 3", search_type="vector"),
        former.add_document("acme", "a", "Refused."),
        former.add_document("acme", "a", "Refused.", embed="later"),
        make_memory(driver_url).initialize(),
    ):
        with pytest.raises(EmbedderMismatchError) as caught:
            await call
        assert caught.value.stored == "hash/hash (96 dimensions)"
    assert rows(driver_url) == before
    assert len(await former.search("acme", "rule 3", search_type="text")) == 10
    assert not (await former.health()).healthy
    assert await memory.drop_space(1) == 0
    # Its number means the same model for ever.
    assert (await memory.reembed(HashEmbedder(64))).space_id == 1
    assert await former.search("acme", "rule 3", search_type="vector")


async def test_dropping_goes_on_where_it_was_stopped(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmemory.reembedding.chunk_walk.PAGE_CHUNKS", 10)
    memory = make_memory()
    await memory.add_documents(corpus(50))
    await memory.reembed(HashEmbedder(96))

    def stop(progress: MaintenanceProgress) -> None:
        if progress.done >= 20:
            raise KeyError

    with pytest.raises(KeyError):
        await memory.drop_space(1, on_progress=stop)
    assert (await states(memory))[0] == (1, "dropped", 30, 20)
    assert await memory.drop_space(1) == 30
    assert (await states(memory))[1] == (2, "in use", 50, 0)


async def test_what_is_left_of_dropped_vectors_is_used_again(
    make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmemory.reembedding.chunk_walk.PAGE_CHUNKS", 10)
    memory = make_memory()
    await memory.add_documents(corpus(50))
    await memory.reembed(HashEmbedder(96))

    def take_over(progress: MaintenanceProgress) -> None:
        if progress.done == 20:
            # As a run of reembed in another process does first of all.
            fetch(
                database_url,
                "UPDATE llmemory.embedding_spaces SET state = 'filling' WHERE space_id = 1",
            )

    with pytest.raises(ConflictError, match="made anew"):
        await memory.drop_space(1, on_progress=take_over)
    assert (await memory.reembed(HashEmbedder(64))).embeddings_created == 20
    assert await states(memory) == [(1, "in use", 50, 0), (2, "replaced", 50, 0)]


async def test_a_run_whose_space_is_dropped_ends(make_memory: MakeMemory) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(10))
    embedder = Waiting()
    with pytest.raises(ExceptionGroup) as caught:
        async with under_way(memory, embedder):
            assert await make_memory().drop_space(2) == 0
    assert caught.group_contains(ConflictError, match="were dropped")
    assert await states(memory) == [(1, "in use", 10, 0), (2, "dropped", 0, 10)]
    assert await memory.search("acme", "rule", search_type="vector")


async def test_what_may_not_be_dropped(make_memory: MakeMemory, database_url: str) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(10))
    with pytest.raises(ValidationError, match="is the default"):
        await memory.drop_space(1)
    with pytest.raises(ValidationError, match="no space of this number"):
        await memory.drop_space(7)
    assert await memory.search("acme", "rule", search_type="vector")
    fetch(database_url, "CREATE ROLE reembedding_guest LOGIN")
    try:
        fetch(database_url, "GRANT USAGE ON SCHEMA llmemory TO reembedding_guest")
        fetch(database_url, "GRANT ALL ON ALL TABLES IN SCHEMA llmemory TO reembedding_guest")
        guest = make_memory(database_url.replace("postgres@", "reembedding_guest@"))
        embedder = HashEmbedder(96)
        for call in (guest.reembed(embedder), guest.drop_space(1)):
            with pytest.raises(ConfigurationError, match="owns its tables"):
                await call
        assert embedder.texts == 0
        await guest.close()
    finally:
        fetch(database_url, "DROP OWNED BY reembedding_guest")
        fetch(database_url, "DROP ROLE reembedding_guest")
