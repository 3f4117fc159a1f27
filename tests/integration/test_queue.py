"""The queue: leases, turns, retries, documents that are given up, and the worker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
from integration.helpers import (
    GatedEmbedder,
    OddEmbedder,
    chain,
    fetch,
    paragraphs,
    plain,
    rows,
    together,
    until,
)
from integration.queue_checker import queue_problems
from plugins.memories import MakeMemory, connections_in_use
from plugins.server import with_driver
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    EmbeddingError,
    HashEmbedder,
    Memory,
    ProviderRejected,
    ProviderUnavailable,
    QueueProgress,
    Settings,
    ValidationError,
)
from llmemory.queue import jobs as jobs_module
from llmemory.queue import processing as queue

pytestmark = pytest.mark.anyio

EAGER = Settings(job_poll_s=0.05)
SECRET = "hunter2"


class PickyEmbedder(HashEmbedder):
    """Refuses every call that has a text with one of some words in it, and quotes it."""

    def __init__(self, *words: str, error: type[Exception] = ProviderRejected) -> None:
        super().__init__()
        self.words = words
        self.error = error
        self.batches: list[list[str]] = []

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        self.batches.append(list(texts))
        for text in texts:
            if any(word in text for word in self.words):
                raise self.error(f"cannot take {text!r} with key {SECRET}")
        return await super().embed(texts, purpose=purpose)


async def leave(memory: AsyncMemory, owner: str, *contents: str) -> list[str]:
    """Add documents for later; return their ids."""
    return [
        (await memory.add_document(owner, "name", content, embed="later")).document_id
        for content in contents
    ]


def jobs(url: str, columns: str = "state, attempts, last_error") -> list[tuple[Any, ...]]:
    return fetch(url, f"SELECT {columns} FROM llmemory.embedding_jobs ORDER BY created_at, job_id")


def due(url: str) -> bool:
    return any(is_due for (is_due,) in jobs(url, "available_at <= now()"))


def make_due(url: str) -> None:
    """Let every pause be over."""
    fetch(url, "UPDATE llmemory.embedding_jobs SET available_at = now() - interval '1 hour'")


class TestTurns:
    async def test_all_owners_documents_get_their_vectors(
        self, make_memory: MakeMemory, driver_url: str, embedder: HashEmbedder
    ) -> None:
        memory = make_memory(driver_url)
        for owner in "abc":
            await leave(memory, owner, "One text.", paragraphs("two", "three"))
        assert await memory.process_pending_embeddings("b") == 2
        assert (await memory.get_statistics("a")).pending_embeddings == 2
        assert await memory.process_pending_embeddings(limit=3) == 3
        assert await memory.process_pending_embeddings() == 1
        assert await memory.process_pending_embeddings() == 0
        assert rows(driver_url)["embeddings"] == 9
        assert await queue_problems(driver_url, embedder) == []

    async def test_an_owner_with_100_000_jobs_keeps_none_with_10_waiting(
        self, memory: AsyncMemory, database_url: str
    ) -> None:
        await memory.initialize()
        # Without chunks, for what counts are turns.
        fetch(
            database_url,
            """
            WITH many AS (
                INSERT INTO llmemory.documents (owner_id, document_id, document_name, document_type,
                    language, metadata, content_hash, content, chunk_count, created_at, updated_at)
                SELECT 'many', gen_random_uuid(), 'd', 'general', 'simple', '{}', '', '', 0,
                    now(), now()
                FROM generate_series(1, 100000) RETURNING document_id
            )
            INSERT INTO llmemory.embedding_jobs
                (owner_id, job_id, document_id, space_id, state, attempts, available_at, created_at)
            SELECT 'many', document_id, document_id, 1, 'queued', 0,
                now() - interval '1 day', now() - interval '1 day'
            FROM many
            """,
        )
        for owner in ("first", "zero"):
            await leave(memory, owner, *(f"Text {n}." for n in range(10)))
        turns: list[QueueProgress] = []

        def are_done() -> bool:
            return {"first", "zero"} <= {turn.owner_id for turn in turns}

        await memory.run_worker(should_stop=are_done, on_progress=turns.append)
        assert len(turns) <= 3
        finished = {turn.owner_id: turn.finished for turn in turns}
        assert (finished["first"], finished["zero"]) == (10, 10)
        assert finished.get("many", 0) <= jobs_module.JOBS_A_CLAIM

    async def test_a_long_document_is_worked_on_in_portions_between_others(
        self, make_memory: MakeMemory, database_url: str, embedder: HashEmbedder
    ) -> None:
        settings = Settings(chunk_size=50, chunk_overlap=0)
        memory = make_memory(settings=settings)
        long = "\n\n".join(f"Paragraph number {number} of a long text." for number in range(2500))
        await leave(memory, "long", long, "Short text.")
        await leave(memory, "other", "Another text.")
        turns: list[QueueProgress] = []
        await memory.run_worker(
            should_stop=lambda: sum(turn.finished for turn in turns) == 3,
            on_progress=turns.append,
        )
        embedded = [turn.embedded for turn in turns if turn.owner_id == "long"]
        assert max(embedded) == queue.PORTION_CHUNKS
        assert sum(embedded) == 2501
        assert "other" in {turn.owner_id for turn in turns[:2]}
        assert await queue_problems(database_url, embedder) == []

    async def test_nothing_is_held_while_the_embedder_works(self, make_memory: MakeMemory) -> None:
        embedder = GatedEmbedder()
        memory = make_memory(embedder=embedder)
        await leave(memory, "acme", "A text.")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.process_pending_embeddings)
            await embedder.arrived.wait()
            assert connections_in_use(memory) == 0
            embedder.gate.set()

    @pytest.mark.parametrize("limit", [0, -1, True, 1.0, 2.5, "3", float("inf")])
    async def test_a_limit_is_a_number_of_documents(self, memory: AsyncMemory, limit: Any) -> None:
        with pytest.raises(ValidationError, match="limit must be"):
            await memory.process_pending_embeddings(limit=limit)


class TestLeases:
    async def test_a_lease_is_kept_while_its_worker_lives(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = GatedEmbedder()
        settings = Settings(job_lease_s=0.3)
        memory, other = (make_memory(embedder=embedder, settings=settings) for _ in range(2))
        await leave(memory, "acme", "A text.")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.process_pending_embeddings)
            await embedder.arrived.wait()
            for _ in range(4):
                await anyio.sleep(0.2)
                assert await other.process_pending_embeddings() == 0
            assert (await memory.get_statistics("acme")).queue.running == 1
            embedder.gate.set()
        assert jobs(database_url) == []

    async def test_a_lease_that_was_lost_does_no_harm(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        """The first worker is held up, a second one does the work, a third one works anew."""
        slow, gated = GatedEmbedder(), GatedEmbedder()
        first, third = make_memory(embedder=slow), make_memory(embedder=gated)
        await leave(first, "acme", "A text.")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.process_pending_embeddings)
            await slow.arrived.wait()
            fetch(database_url, "UPDATE llmemory.embedding_jobs SET leased_until = now()")
            tasks.start_soon(third.process_pending_embeddings)
            await gated.arrived.wait()
            slow.gate.set()
            await until(lambda: jobs(database_url) == [])
            gated.gate.set()
        assert await queue_problems(database_url, slow) == []

    async def test_a_worker_that_fails_late_does_not_take_the_lease_of_another(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        class FailingLate(GatedEmbedder):
            async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
                await super().embed(texts, purpose=purpose)
                raise ProviderUnavailable("too late")

        slow, gated = FailingLate(), GatedEmbedder()
        first, second = make_memory(embedder=slow), make_memory(embedder=gated)
        # One space for both.
        slow.provider = gated.provider = "HashEmbedder"
        await leave(first, "acme", "A text.")
        async with anyio.create_task_group() as tasks:

            async def fail() -> None:
                assert await first.process_pending_embeddings() == 0
                failed.set()

            failed = anyio.Event()
            tasks.start_soon(fail)
            await slow.arrived.wait()
            fetch(database_url, "UPDATE llmemory.embedding_jobs SET leased_until = now()")
            tasks.start_soon(second.process_pending_embeddings)
            await gated.arrived.wait()
            slow.gate.set()
            await failed.wait()
            ((attempts, is_leased, error),) = jobs(
                database_url, "attempts, leased_until > now(), last_error"
            )
            assert (attempts, is_leased, error) == (2, True, None)
            gated.gate.set()
        assert await queue_problems(database_url, gated) == []

    async def test_work_that_ended_in_silence_each_time_is_given_up(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory(settings=Settings(job_attempts=2))
        await leave(memory, "acme", "Kills the worker.", "Harmless.")
        fetch(
            database_url,
            "UPDATE llmemory.embedding_jobs SET attempts = 2, leased_until = now() - interval '1s' "
            "WHERE document_id = (SELECT document_id FROM llmemory.chunks WHERE content ~ 'Kills')",
        )
        assert await memory.process_pending_embeddings() == 1
        ((state, _, reason),) = jobs(database_url)
        assert state == "failed"
        assert "worker ended" in reason
        assert await queue_problems(database_url, memory.embedder, failed=1) == []

    async def test_cancelled_it_gives_its_work_back(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = GatedEmbedder()
        memory = make_memory(embedder=embedder)
        await leave(memory, "acme", "A text.")
        working = asyncio.create_task(memory.run_worker())
        await embedder.arrived.wait()
        assert jobs(database_url, "attempts, leased_until > now()") == [(1, True)]
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert jobs(database_url, "attempts, leased_until") == [(0, None)]

    async def test_cancelled_at_any_moment_it_holds_nothing(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory()
        await leave(memory, "acme", "A text.")
        for pause in range(0, 40, 3):
            working = asyncio.create_task(memory.process_pending_embeddings())
            for _ in range(pause):
                await asyncio.sleep(0.0005)
            working.cancel()
            await asyncio.wait([working])
            if not jobs(database_url):
                await leave(memory, "acme", "A text.")
            assert jobs(database_url, "attempts, leased_until") == [(0, None)]


class TestFailures:
    async def test_one_bad_chunk_costs_no_other_its_vector(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = PickyEmbedder("indigestible")
        memory = make_memory(embedder=embedder)
        bad = paragraphs("good", "indigestible", "fine")
        ids = await leave(memory, "acme", *(f"Text {n}." for n in range(20)), bad)
        await leave(memory, "other", "Another owner's.")
        with pytest.raises(ProviderRejected):
            await memory.process_pending_embeddings()
        assert rows(database_url)["embeddings"] == 23
        # Once with all, halved down to the one, and once more for what is left.
        assert len(embedder.batches) <= 2 + 2 * 5 + 2
        (job,) = await memory.list_jobs()
        assert (job.document_id, job.state, job.attempts) == (ids[-1], "waiting", 1)
        assert job.last_error is not None
        assert "Chunks: 1." in job.last_error
        assert await queue_problems(database_url, embedder) == []

    @pytest.mark.parametrize("error", [ProviderRejected, ProviderUnavailable, ValueError])
    async def test_given_up_with_a_reason_that_tells_no_secret_and_tried_again_on_demand(
        self, make_memory: MakeMemory, database_url: str, error: type[Exception]
    ) -> None:
        embedder = PickyEmbedder("Private", error=error)
        memory = make_memory(embedder=embedder, settings=Settings(job_attempts=3))
        (document_id,) = await leave(memory, "acme", "Private matters.")
        for _ in range(3):
            with pytest.raises(EmbeddingError):
                await memory.process_pending_embeddings()
            make_due(database_url)
        assert await memory.process_pending_embeddings() == 0
        (job,) = await memory.list_jobs("acme", state="failed")
        assert (job.document_id, job.attempts) == (document_id, 3)
        assert job.last_error is not None
        assert error.__name__ in job.last_error
        assert "Private" not in job.last_error
        assert SECRET not in job.last_error
        found = await memory.get_statistics("acme")
        assert (found.pending_embeddings, found.queue.failed) == (0, 1)

        embedder.words = ()
        assert await memory.process_pending_embeddings() == 0
        assert await memory.requeue_jobs("nobody") == 0
        assert await memory.requeue_jobs("acme", document_ids=[]) == 0
        assert await memory.requeue_jobs("acme", document_ids=[document_id]) == 1
        assert await memory.process_pending_embeddings() == 1
        assert await queue_problems(database_url, embedder) == []

    async def test_pauses_grow_and_are_random(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory(embedder=OddEmbedder(ProviderUnavailable("down")))
        await leave(memory, "acme", *(f"Text {n}." for n in range(8)))
        for attempt in range(1, 4):
            # An embedder that is down ends a call before all have been tried.
            while due(database_url):
                with pytest.raises(ProviderUnavailable):
                    await memory.process_pending_embeddings()
            pauses = fetch(
                database_url,
                "SELECT extract(epoch FROM available_at - now())::float "
                "FROM llmemory.embedding_jobs",
            )
            longest = 10 * 2 ** (attempt - 1)
            assert all(longest / 2 - 2 < pause <= longest for (pause,) in pauses)
            assert len({round(pause, 3) for (pause,) in pauses}) == 8
            make_due(database_url)

    async def test_a_provider_s_wish_to_wait_is_heeded(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        error = ProviderUnavailable("later", retry_after_s=600)
        memory = make_memory(embedder=OddEmbedder(error))
        await leave(memory, "acme", "Text.")
        with pytest.raises(ProviderUnavailable):
            await memory.process_pending_embeddings()
        ((pause,),) = jobs(database_url, "extract(epoch FROM available_at - now())::float")
        assert 590 < pause <= 600

    async def test_a_document_that_takes_the_embedder_down_is_found_out(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = PickyEmbedder("deadly", error=ProviderUnavailable)
        memory = make_memory(embedder=embedder, settings=Settings(job_attempts=5))
        await leave(memory, "acme", *(f"Text {n}." for n in range(15)), "deadly", "Text.")
        for _ in range(12):
            with suppress(ProviderUnavailable):
                await memory.process_pending_embeddings()
            make_due(database_url)
        assert [(state, attempts) for state, attempts, _ in jobs(database_url)] == [("failed", 5)]
        assert await queue_problems(database_url, embedder, failed=1) == []

    async def test_an_embedder_that_is_down_ends_the_call_soon(
        self, make_memory: MakeMemory
    ) -> None:
        embedder = PickyEmbedder("Text", error=ProviderUnavailable)
        memory = make_memory(embedder=embedder)
        for owner in range(10):
            await leave(memory, str(owner), "Text.")
        with pytest.raises(ProviderUnavailable):
            await memory.process_pending_embeddings()
        assert len(embedder.batches) == queue.MOST_SETBACKS

    async def test_an_embedder_that_refuses_everything_is_not_asked_for_each_text(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        embedder = PickyEmbedder("Text")
        memory = make_memory(embedder=embedder)
        await leave(memory, "acme", paragraphs(*(f"Text{n}" for n in range(200))))
        with pytest.raises(ProviderRejected):
            await memory.process_pending_embeddings()
        assert len(embedder.batches) < 50
        assert jobs(database_url, "attempts") == [(1,)]

    async def test_a_mistake_in_a_callback_counts_for_nobody(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory()
        await leave(memory, "acme", "Text.")

        def fail(progress: QueueProgress) -> None:
            raise SystemError("mine")

        with pytest.raises(SystemError):
            await memory.run_worker(on_progress=fail)
        assert await queue_problems(database_url, memory.embedder) == []


class TestChangesMeanwhile:
    @pytest.fixture
    def embedder(self) -> GatedEmbedder:
        return GatedEmbedder()

    async def during(
        self, memory: AsyncMemory, embedder: GatedEmbedder, change: Callable[[], Any]
    ) -> int:
        """Have the vectors made, and the change between reading the text and writing them."""
        finished = 0

        async def work() -> None:
            nonlocal finished
            finished = await memory.process_pending_embeddings()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await embedder.arrived.wait()
            await change()
            embedder.gate.set()
        return finished

    async def test_deleted(
        self, memory: AsyncMemory, embedder: GatedEmbedder, database_url: str
    ) -> None:
        (gone, _) = await leave(memory, "acme", "Goes.", "Stays.")
        done = await self.during(memory, embedder, lambda: memory.delete_document("acme", gone))
        assert done == 1
        assert rows(database_url)["embeddings"] == 1
        assert await queue_problems(database_url, embedder) == []

    @pytest.mark.parametrize("embed", ["now", "later"])
    async def test_replaced(
        self, memory: AsyncMemory, embedder: GatedEmbedder, database_url: str, embed: Any
    ) -> None:
        old = paragraphs("old", "kept", "stale")
        added = await memory.add_document("acme", "a", old, external_id="a", embed="later")

        async def replace() -> None:
            embedder.gate.set()
            await memory.add_document(
                "acme", "a", paragraphs("new", "kept", "fresh"), external_id="a", embed=embed
            )

        await self.during(memory, embedder, replace)
        await memory.process_pending_embeddings()
        assert (await memory.get_document("acme", added.document_id)).chunk_count == 3
        assert jobs(database_url) == []
        assert rows(database_url)["embeddings"] == 3
        assert await queue_problems(database_url, embedder) == []

    async def test_nothing_is_written_for_a_document_that_changed(
        self, memory: AsyncMemory, embedder: GatedEmbedder, database_url: str
    ) -> None:
        """Though its text is the same: what the embedder gets may hold more than the text."""
        (document_id,) = await leave(memory, "acme", "A text.")
        written: list[int] = []

        async def rename() -> None:
            await memory.update_document("acme", document_id, document_name="new", embed="later")

        worker = asyncio.create_task(
            memory.run_worker(
                should_stop=lambda: bool(written) and written[-1] == 1,
                on_progress=lambda progress: written.append(progress.embedded),
            )
        )
        await embedder.arrived.wait()
        await rename()
        embedder.gate.set()
        assert await worker == 1
        assert written == [0, 1]
        assert await queue_problems(database_url, embedder) == []

    @pytest.mark.parametrize(
        "locking",
        [
            "SELECT FROM llmemory.documents WHERE content = 'Locked.' FOR UPDATE",
            "DELETE FROM llmemory.documents WHERE content = 'Locked.'",
            "UPDATE llmemory.embedding_jobs AS j SET attempts = 0, available_at = now(), "
            "leased_until = NULL FROM llmemory.documents AS d "
            "WHERE d.document_id = j.document_id AND content = 'Locked.'",
        ],
        ids=["document", "deletion", "job"],
    )
    async def test_a_user_s_open_transaction_keeps_no_other_document_waiting(
        self, make_memory: MakeMemory, embedder: GatedEmbedder, database_url: str, locking: str
    ) -> None:
        memory = make_memory(embedder=embedder, settings=Settings(job_lease_s=1))
        await leave(memory, "acme", "Locked.", "Free.")
        async with await psycopg.AsyncConnection.connect(plain(database_url)) as other:

            async def lock() -> None:
                await other.execute(locking.encode())
                # The lease is renewed meanwhile, or tried to be.
                await anyio.sleep(0.5)

            with anyio.fail_after(10):
                await self.during(memory, embedder, lock)
            assert rows(database_url)["embeddings"] == 1 + ("jobs AS j" in locking)
            await other.rollback()
        make_due(database_url)
        fetch(database_url, "UPDATE llmemory.embedding_jobs SET leased_until = NULL")
        await memory.process_pending_embeddings()
        assert rows(database_url)["embeddings"] == 2
        assert await queue_problems(database_url, embedder) == []


class TestWorker:
    async def working(self, memory: AsyncMemory, *, until_finished: int) -> None:
        finished = 0

        def count(progress: QueueProgress) -> None:
            nonlocal finished
            finished += progress.finished

        with anyio.fail_after(10):
            await memory.run_worker(
                should_stop=lambda: finished >= until_finished, on_progress=count
            )

    @pytest.mark.parametrize("of_session", [False, True], ids=["own", "session"])
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
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND query LIKE 'LISTEN%%'",
            )
            await until(lambda: not _listeners(driver_url))
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
        with anyio.fail_after(10):
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
                deadline = time.monotonic() + 10
                while memory.get_statistics("acme").pending_embeddings:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                stop.set()
                thread.join(10)
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


class TestNumbers:
    async def test_waiting_running_failed_and_the_oldest(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory()
        assert (await make_memory(schema="none").health()).queue is None
        found = (await memory.health()).queue
        assert found is not None
        assert (found.waiting, found.running, found.failed, found.oldest_s) == (0, 0, 0, None)
        await leave(memory, "acme", "One.", "Two.", "Three.", "Four.")
        await leave(memory, "other", "Five.")
        fetch(
            database_url,
            """
            UPDATE llmemory.embedding_jobs AS j SET
                state = CASE content WHEN 'One.' THEN 'failed' ELSE 'queued' END,
                leased_until = CASE content WHEN 'Two.' THEN now() + interval '1 hour'
                    WHEN 'Three.' THEN now() - interval '1 hour' END,
                created_at = now() - CASE content WHEN 'One.' THEN interval '3 hours'
                    ELSE interval '2 hours' END
            FROM llmemory.documents AS d
            WHERE d.document_id = j.document_id AND d.owner_id = 'acme'
            """,
        )
        found = (await memory.get_statistics("acme")).queue
        assert (found.waiting, found.running, found.failed) == (2, 1, 1)
        assert found.oldest_s == pytest.approx(7200, abs=30)
        assert (await memory.get_statistics("acme")).pending_embeddings == 3
        everyone = (await memory.health()).queue
        assert everyone is not None
        assert (everyone.waiting, everyone.running, everyone.failed) == (3, 1, 1)
        listed = await memory.list_jobs("acme")
        assert [job.state for job in listed].count("waiting") == 2
        assert listed[0].state == "failed"
        assert len(await memory.list_jobs(limit=2, offset=4)) == 1
        assert [job.owner_id for job in await memory.list_jobs(state="running")] == ["acme"]

    @pytest.mark.parametrize("state", ["queued", "", 1])
    async def test_a_state_is_one_of_three(self, memory: AsyncMemory, state: Any) -> None:
        with pytest.raises(ValidationError, match="state must be"):
            await memory.list_jobs(state=state)


async def test_errors_of_the_worker_have_no_text(
    make_memory: MakeMemory, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = PickyEmbedder("Private", error=ValueError)
    memory = make_memory(embedder=embedder, settings=EAGER)
    await leave(memory, "acme", "Private matters.")
    turns: list[QueueProgress] = []
    with anyio.fail_after(10):
        await memory.run_worker(should_stop=lambda: bool(turns), on_progress=turns.append)
    assert turns[0].failed == 1
    assert "1 documents were not finished" in caplog.text
    assert "Private" not in caplog.text + str(turns)
    with pytest.raises(EmbeddingError) as raised:
        await make_memory(embedder=embedder).add_document("acme", "b", "Private too.")
    assert "Private" not in str(next(chain(raised.value)))
