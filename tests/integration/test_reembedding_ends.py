"""Runs that change the model and end anywhere, and vectors of a former model that are dropped."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from integration.helpers import PATIENCE_S, fetch, paragraphs, rows, together, until
from integration.reembedding import HEALED, OWNERS, Failing, Waiting, corpus, states, under_way
from plugins.memories import MakeMemory

from llmemory import (
    ChunkToEmbed,
    ConfigurationError,
    ConflictError,
    EmbedderMismatchError,
    EmbeddingError,
    HashEmbedder,
    MaintenanceProgress,
    ProviderRejected,
    Settings,
    TextsRefused,
    ValidationError,
)

pytestmark = pytest.mark.anyio

LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
REEMBED = """
import asyncio, sys
from llmemory import AsyncMemory, HashEmbedder, Settings

class Stopping(HashEmbedder):
    async def embed(self, texts, *, purpose):
        made = await super().embed(texts, purpose=purpose)
        if purpose == "document":
            with open(sys.argv[2], "a") as log:
                log.writelines(f"{text}\\n" for text in texts)
            if self.texts > 160:
                await asyncio.sleep(3600)
        return made

async def main():
    settings = Settings.from_env(embedding_batch_size=16)
    async with AsyncMemory(sys.argv[1], embedder=HashEmbedder(64), settings=settings) as memory:
        await memory.reembed(Stopping(96))

asyncio.run(main())
"""


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder(64)


async def test_killed_it_goes_on_without_embedding_again(
    make_memory: MakeMemory, database_url: str, tmp_path: Path
) -> None:
    memory = make_memory()
    await memory.add_documents(corpus(400))
    log = tmp_path / "embedded.txt"
    arguments = [sys.executable, "-c", REEMBED, database_url, log]
    done = "SELECT count(*) FROM llmemory.embeddings WHERE space_id = 2"
    for wanted in (100, 200):
        process = subprocess.Popen(arguments)
        await until(lambda wanted=wanted: fetch(database_url, done)[0][0] >= wanted)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (await states(memory))[1][1] == "filling"
    stored = fetch(database_url, done)[0][0]
    assert 200 <= stored < 400
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
        with anyio.fail_after(PATIENCE_S):
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


class Refusing(HashEmbedder):
    """Refuses texts with a word of some; counts its calls."""

    def __init__(self, dimensions: int, *words: str, error: Exception | None = None) -> None:
        super().__init__(dimensions)
        self.words = set(words)
        self.error = error or ProviderRejected("no", status=400)

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if any(self.words.intersection(text.split()) for text in texts):
            raise self.error
        return await super().embed(texts, purpose=purpose)


@pytest.mark.parametrize("at_once", [1, 4])
async def test_refused_texts_cost_no_other_its_vector(
    make_memory: MakeMemory, database_url: str, at_once: int
) -> None:
    memory = make_memory(settings=Settings(embedding_batch_size=16))
    long = {
        "owner_id": "acme",
        "document_name": "long",
        "content": paragraphs("one", "two", "poison", "three"),
    }
    added = await memory.add_documents([*corpus(100), long])
    former = memory.embedder
    embedder = Refusing(96, "poison", "word21", "word693")
    embedder.max_concurrency = at_once  # type: ignore[attr-defined]
    refused = {(OWNERS[n % 3], added[n].document_id) for n in (3, 99)}
    refused.add(("acme", added[100].document_id))
    with pytest.raises(TextsRefused, match="texts of 3 documents") as caught:
        await memory.reembed(embedder)
    assert memory.embedder is former
    assert set(caught.value.reasons) == refused

    _, state, _, missing = (await states(memory))[1]
    assert (state, missing) == ("filling", 3)
    assert not await memory.list_jobs()

    # They are asked for again, and a plain text, as it takes none; nothing else is.
    before = embedder.texts
    with pytest.raises(TextsRefused):
        await memory.reembed(embedder)
    assert embedder.texts == before + 1

    result = await memory.reembed(embedder, skip_refused=True)
    assert (result.embeddings_created, result.documents_refused) == (0, 3)
    assert memory.embedder is embedder
    jobs = await memory.list_jobs()
    assert {(job.owner_id, job.document_id) for job in jobs} == refused
    assert {job.state for job in jobs} == {"failed"}
    assert not fetch(database_url, HEALED.format(space=result.space_id))[0][0]

    # Mended, a document is embedded like any other, and what is missing later is made.
    await memory.update_document("acme", added[100].document_id, content="Nothing bad.")
    embedder.words = {"word21"}
    result = await memory.reembed(skip_refused=True)
    assert (result.embeddings_created, result.documents_refused) == (1, 1)
    assert [job.document_id for job in await memory.list_jobs()] == [added[3].document_id]


async def test_a_function_that_fails_for_some_costs_no_other_its_vector(
    make_memory: MakeMemory,
) -> None:
    bad = {"Two."}

    def make(chunk: ChunkToEmbed) -> str:
        if chunk.content in bad:
            raise TimeoutError(chunk.content)
        return "Context."

    memory = make_memory(chunk_context=make)
    added = [
        await memory.add_document("acme", "name", text, embed="later")
        for text in ("One.", "Two.", "Three.")
    ]
    with pytest.raises(TextsRefused, match="chunk_context failed for texts of 1 doc") as caught:
        await memory.reembed(HashEmbedder(96))
    ((document, reason),) = caught.value.reasons.items()
    assert document == ("acme", added[1].document_id)
    assert reason == (
        "The function chunk_context failed (ContextFailed, caused by TimeoutError). Chunks: 0."
    )
    bad.clear()
    result = await memory.reembed(HashEmbedder(96))
    assert (result.embeddings_created, result.documents_refused) == (1, 0)


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


class Late:
    """Knows its dimensions once it was asked to find them."""

    model = "late"

    def __init__(self, found: int) -> None:
        self.found = found
        self.is_known = False

    @property
    def dimensions(self) -> int:
        assert self.is_known
        return self.found

    async def find_dimensions(self) -> None:
        self.is_known = True

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        return await HashEmbedder(self.found).embed(texts, purpose=purpose)


async def test_dimensions_are_found_before_they_are_read(make_memory: MakeMemory) -> None:
    memory = make_memory(embedder=Late(64))
    await memory.add_document("acme", "Leave", "Staff have 25 days of leave.")
    assert (await make_memory(embedder=Late(64)).health()).embedding_dimensions == 64
    with pytest.raises(ConfigurationError, match="dimensions must be 1 to 16000"):
        await memory.reembed(Late(0))
    assert (await memory.reembed(Late(32))).embeddings_created == 1
    assert len(await memory.search("acme", "days of leave", search_type="vector")) == 1
