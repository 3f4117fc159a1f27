"""The worker: what wakes it, what it waits for, and how it ends."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from integration.helpers import PATIENCE_S, OddEmbedder, chain, fetch, together, until, wait_until
from integration.queue_checker import queue_problems
from integration.queued_documents import EAGER, PickyEmbedder, jobs, leave
from plugins.memories import MakeMemory, connections_in_use
from plugins.server import with_driver
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    EmbeddingError,
    HashEmbedder,
    Memory,
    ProviderUnavailable,
    QueueProgress,
    Settings,
)
from llmemory.queue import processing as queue

pytestmark = pytest.mark.anyio


class TestWorker:
    async def working(self, memory: AsyncMemory, *, until_finished: int) -> None:
        finished = 0

        def count(progress: QueueProgress) -> None:
            nonlocal finished
            finished += progress.finished

        with anyio.fail_after(PATIENCE_S):
            await memory.run_worker(
                should_stop=lambda: finished >= until_finished, on_progress=count
            )
        assert finished == until_finished
        assert (await memory.get_statistics("acme")).pending_embeddings == 0

    @pytest.mark.parametrize("of_session", [False, True], ids=["own", "session"])
    @pytest.mark.direct("listens for NOTIFY")
    async def test_a_notification_wakes_it(
        self, make_memory: MakeMemory, driver_url: str, of_session: bool
    ) -> None:
        memory = make_memory(driver_url, settings=Settings(job_poll_s=3600))
        await memory.initialize()
        engine = create_async_engine(with_driver(driver_url, "postgresql+asyncpg"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.working(memory, until_finished=1))
            await until(lambda: _listeners(driver_url))
            if of_session:
                async with AsyncSession(engine) as session:
                    await memory.add_document("acme", "a", "Text.", session=session)
                    await session.commit()
            else:
                await memory.add_document("acme", "a", "Text.", embed="later")
        await engine.dispose()
        assert connections_in_use(memory) == 0
        await until(lambda: not _listeners(driver_url))

    async def test_without_notifications_it_looks_by_itself(self, make_memory: MakeMemory) -> None:
        settings = Settings(job_poll_s=0.05, job_notify=False)
        memory = make_memory(settings=settings)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.working(memory, until_finished=2))
            for text in ("One.", "Two."):
                await anyio.sleep(0.1)
                await leave(memory, "acme", text)

    @pytest.mark.direct("listens for NOTIFY")
    async def test_a_lost_listener_is_no_loss(
        self, make_memory: MakeMemory, driver_url: str
    ) -> None:
        memory = make_memory(driver_url, settings=EAGER)
        await memory.initialize()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.working(memory, until_finished=1))
            await until(lambda: _listeners(driver_url))
            fetch(
                driver_url,
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND query LIKE 'LISTEN%%'",
            )
            await leave(memory, "acme", "Text.")

    async def test_a_pool_that_keeps_nothing_is_not_listened_on(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        """It may lend connections of another pool, which would miss one."""
        engine = create_async_engine(
            with_driver(database_url, "postgresql+asyncpg"), poolclass=NullPool
        )
        memory = make_memory(engine=engine, settings=EAGER)
        await leave(memory, "acme", "Text.")
        seen: list[int] = []
        with anyio.fail_after(PATIENCE_S):
            await memory.run_worker(
                should_stop=lambda: bool(seen),
                on_progress=lambda progress: seen.append(_listeners(database_url)),
            )
        assert seen == [0]

    @pytest.mark.parametrize("two_phases", [False, True])
    async def test_what_is_to_be_prepared_does_not_notify(
        self, make_memory: MakeMemory, database_url: str, statements: Any, two_phases: bool
    ) -> None:
        """PostgreSQL would refuse to prepare it."""
        engine = create_async_engine(with_driver(database_url, "postgresql+psycopg"))
        memory = make_memory(engine=engine)
        with statements(memory) as sent:
            async with AsyncSession(engine, twophase=two_phases) as session:
                await memory.add_document("acme", "a", "Text.", session=session)
                await session.rollback()
        await engine.dispose()
        assert any("INSERT INTO llmemory.embedding_jobs" in statement for statement in sent)
        assert any("pg_notify" in statement for statement in sent) == (not two_phases)

    async def test_it_waits_while_the_embedder_is_down(
        self, make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue, "FIRST_RETRY_S", 0.05)
        embedder = OddEmbedder(ProviderUnavailable("down"))
        memory = make_memory(embedder=embedder, settings=EAGER)
        await leave(memory, "acme", "Text.")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.working(memory, until_finished=1))
            await until(lambda: jobs(database_url, "attempts >= 2") == [(True,)])
            embedder.answer = None

    async def test_blocking_it_ends_when_told_to(self, database_url: str) -> None:
        def work() -> None:
            with Memory(database_url, embedder=HashEmbedder(), settings=EAGER) as memory:
                memory.add_document("acme", "a", "Text.", embed="later")
                stop = threading.Event()
                results: list[int] = []
                thread = threading.Thread(
                    target=lambda: results.append(memory.run_worker(should_stop=stop.is_set))
                )
                thread.start()
                wait_until(lambda: not memory.get_statistics("acme").pending_embeddings)
                stop.set()
                thread.join(PATIENCE_S)
                assert results == [1]

        await anyio.to_thread.run_sync(work)

    async def test_several_at_once_share_the_work(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = PickyEmbedder()
        memories = [make_memory(embedder=embedder) for _ in range(4)]
        for owner in "abc":
            await leave(memories[0], owner, *(f"Text {n} of {owner}." for n in range(50)))
        done = await together(*(memory.process_pending_embeddings() for memory in memories))
        assert sum(done) == 150
        texts = [text for call in embedder.batches for text in call]
        assert len(texts) == len(set(texts)) == 150
        assert await queue_problems(database_url, embedder) == []


def _listeners(url: str) -> int:
    ((count,),) = fetch(
        url,
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE 'LISTEN%%'",
    )
    return int(count)


async def test_errors_of_the_worker_have_no_text(
    make_memory: MakeMemory, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = PickyEmbedder("Private", error=ValueError)
    memory = make_memory(embedder=embedder, settings=EAGER)
    await leave(memory, "acme", "Private matters.")
    turns: list[QueueProgress] = []
    with anyio.fail_after(PATIENCE_S):
        await memory.run_worker(should_stop=lambda: bool(turns), on_progress=turns.append)
    assert turns[0].failed == 1
    assert "1 documents were not finished" in caplog.text
    assert "Private" not in caplog.text + str(turns)
    with pytest.raises(EmbeddingError) as raised:
        await make_memory(embedder=embedder).add_document("acme", "b", "Private too.")
    assert "Private" not in str(next(chain(raised.value)))
