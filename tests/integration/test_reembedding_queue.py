"""Changing the model beside the queue: workers across the switch, and what the embedder sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from integration.helpers import PATIENCE_S, GatedEmbedder, fetch, until
from integration.queue_checker import queue_problems
from plugins.memories import MakeMemory
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    ChunkToEmbed,
    EmbedderMismatchError,
    HashEmbedder,
    QueueProgress,
    Settings,
)
from llmemory.types import Vectors

pytestmark = pytest.mark.anyio

EAGER = Settings(job_poll_s=0.05)
HANDBOOK = "# Leave\n\nStaff have 25 days.\n\n# Pay\n\nOn the last day."


class Listening(HashEmbedder):
    """Keeps the documents it is given."""

    def __init__(self) -> None:
        super().__init__(96)
        self.heard: list[str] = []

    async def embed(self, texts: Any, *, purpose: Any) -> Vectors:
        if purpose == "document":
            self.heard += texts
        return await super().embed(texts, purpose=purpose)


async def leave(memory: AsyncMemory, *contents: str) -> None:
    for content in contents:
        await memory.add_document("acme", content, content, embed="later")


def vectors(url: str, space_id: int) -> int:
    query = "SELECT count(*) FROM llmemory.embeddings WHERE space_id = %s"
    return int(fetch(url, query, space_id)[0][0])


def jobs(url: str, space_id: int) -> int:
    query = "SELECT count(*) FROM llmemory.embedding_jobs WHERE space_id = %s"
    return int(fetch(url, query, space_id)[0][0])


@asynccontextmanager
async def working(memory: AsyncMemory) -> AsyncIterator[Callable[[], int]]:
    """Run a worker within the block; give what tells how many documents it has finished."""
    is_over = False
    finished = 0

    def count(progress: QueueProgress) -> None:
        nonlocal finished
        finished += progress.finished

    async def work() -> None:
        await memory.run_worker(should_stop=lambda: is_over, on_progress=count)

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        with anyio.fail_after(PATIENCE_S):
            yield lambda: finished
        is_over = True


async def test_a_worker_goes_on_with_its_memorys_new_model(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url, settings=EAGER)
    new = HashEmbedder(96)
    async with working(memory) as finished:
        await leave(memory, "One.", "Two.")
        await until(lambda: finished() == 2)
        await memory.reembed(new)
        await leave(memory, "Three.", "Four.")
        await until(lambda: finished() == 4)
    assert (vectors(driver_url, 1), vectors(driver_url, 2)) == (2, 4)
    assert await queue_problems(driver_url, new, space_id=2) == []


async def test_a_turn_that_the_switch_overtakes_leaves_nothing_behind(
    make_memory: MakeMemory, database_url: str
) -> None:
    former, new = GatedEmbedder(), HashEmbedder(96)
    memory = make_memory(embedder=former, settings=EAGER)
    async with working(memory) as finished:
        await leave(memory, "One.")
        await former.arrived.wait()
        assert (await memory.reembed(new, drop_old=True)).embeddings_created == 1
        former.gate.set()
        await leave(memory, "Two.")
        await until(lambda: finished() == 1)
    assert (vectors(database_url, 1), jobs(database_url, 1)) == (0, 0)
    assert await queue_problems(database_url, new, space_id=2) == []


async def test_a_worker_with_the_former_embedder_leaves_the_new_space_alone(
    make_memory: MakeMemory, database_url: str, embedder: HashEmbedder
) -> None:
    former, memory = make_memory(settings=EAGER), make_memory()
    with pytest.RaisesGroup(pytest.RaisesExc(EmbedderMismatchError)):
        async with working(former) as finished:
            await leave(former, "One.")
            await until(lambda: finished() == 1)
            await memory.reembed(HashEmbedder(96))
            await leave(former, "Two.")
            await until(lambda: finished() == 2)
            assert (vectors(database_url, 1), jobs(database_url, 1)) == (2, 0)
            assert (vectors(database_url, 2), jobs(database_url, 2)) == (1, 1)
            assert await queue_problems(database_url, embedder) == []
            # What waits for another model's vectors is not what this one waits for.
            for of, waiting in ((former, 0), (memory, 1)):
                queue = (await of.health()).queue
                assert queue is not None
                assert queue.waiting == waiting
                assert (await of.get_statistics("acme")).queue.waiting == waiting
            await memory.drop_space(1)
            await anyio.sleep_forever()
    with pytest.raises(EmbedderMismatchError):
        await former.process_pending_embeddings()
    assert await memory.process_pending_embeddings() == 1


@pytest.fixture(params=["psycopg", "psycopg2"])
def engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    module = pytest.importorskip(request.param)
    engine = create_engine(
        f"postgresql+{request.param}://",
        creator=lambda: module.connect(database_url),
        poolclass=NullPool,
    )
    yield engine
    engine.dispose()


@pytest.mark.parametrize("embed", ["now", "later"])
async def test_a_document_built_before_the_switch_gets_a_job_for_the_new_space(
    make_memory: MakeMemory, database_url: str, engine: Engine, embed: Any
) -> None:
    former, memory = make_memory(), make_memory()
    await former.add_document("acme", "Old", "Old.", external_id="old", embed="later")
    built = [
        await former.build_document("acme", "New", "New.", external_id=key, embed=embed)
        for key in ("old", "new")
    ]
    new = HashEmbedder(96)
    await memory.reembed(new)
    with Session(engine) as session:
        session.add_all(built)
        session.commit()
    own = (2, 0) if embed == "now" else (0, 2)
    assert (vectors(database_url, 1), jobs(database_url, 1)) == own
    assert (vectors(database_url, 2), jobs(database_url, 2)) == (0, 2)
    assert await memory.process_pending_embeddings() == 2
    assert await queue_problems(database_url, new, space_id=2) == []
    # Its vectors replace no job of another space.
    await former.add_document("acme", "Third", "Third.", external_id="third", embed="now")
    changed = await former.build_document("acme", "Third", "3.", external_id="third")
    with Session(engine) as session:
        session.add(changed)
        session.commit()
    assert await queue_problems(database_url, new, space_id=2) == []
    assert jobs(database_url, 2) == 1


async def test_what_refers_to_dropped_vectors_is_refused(
    make_memory: MakeMemory, database_url: str, engine: Engine
) -> None:
    former, memory = make_memory(), make_memory()
    await former.add_document("acme", "Old", "Old.")
    statement = await former.search_statement("acme", "old")
    built = await former.build_document("acme", "New", "New.")
    await memory.reembed(HashEmbedder(96))
    with Session(engine) as session:
        assert len(session.execute(statement).all()) == 1
        await memory.drop_space(1)
        assert session.execute(statement).all() == []
        session.add(built)
        with pytest.raises(EmbedderMismatchError):
            session.flush()
    with pytest.raises(EmbedderMismatchError):
        await former.search_statement("acme", "old")
    assert vectors(database_url, 1) == 0
    assert (await memory.list_documents("acme")).total_count == 1


async def test_what_was_given_up_is_done(make_memory: MakeMemory, database_url: str) -> None:
    memory = make_memory()
    await leave(memory, "One.", "Two.")
    fetch(database_url, "UPDATE llmemory.embedding_jobs SET state = 'failed', attempts = 8")
    assert (await memory.reembed()).embeddings_created == 2
    assert await memory.list_jobs() == []


async def test_the_new_embedder_sees_name_headings_and_contexts(make_memory: MakeMemory) -> None:
    asked: list[ChunkToEmbed] = []

    def make(chunk: ChunkToEmbed) -> str:
        asked.append(chunk)
        return f"Of {chunk.owner_id}."

    with_name = Settings(embed_headings=True, chunk_context_cache_size=0)
    memory = make_memory(settings=with_name, chunk_context=make)
    for owner in ("acme", "other"):
        await memory.add_document(owner, "Book", HANDBOOK, document_type="markdown")
    added, new = sorted(asked, key=repr), Listening()
    asked.clear()
    assert (await memory.reembed(new)).embeddings_created == 4
    assert sorted(asked, key=repr) == added
    assert sorted(new.heard) == [
        f"Of {owner}.\n\nBook > {part}"
        for owner in ("acme", "other")
        for part in (
            "Leave\n\n# Leave\n\nStaff have 25 days.",
            "Pay\n\n# Pay\n\nOn the last day.",
        )
    ]
    for chunk in asked:
        assert chunk.document_content == HANDBOOK
