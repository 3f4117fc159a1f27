"""The queue: whose turn it is, the leases of workers, and what is told of both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from integration.helpers import (
    GatedEmbedder,
    fetch,
    paragraphs,
    rows,
    until,
)
from integration.queue_checker import queue_problems
from integration.queued_documents import jobs, leave
from plugins.memories import MakeMemory, connections_in_use

from llmemory import (
    AsyncMemory,
    HashEmbedder,
    ProviderUnavailable,
    QueueProgress,
    Settings,
    ValidationError,
)
from llmemory.queue import jobs as jobs_module
from llmemory.queue import processing as queue

pytestmark = pytest.mark.anyio


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
        self, make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = GatedEmbedder()
        monkeypatch.setattr(queue, "RENEWALS_A_LEASE", 600)
        settings = Settings(job_lease_s=60)
        memory, other = (make_memory(embedder=embedder, settings=settings) for _ in range(2))
        await leave(memory, "acme", "A text.")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.process_pending_embeddings)
            await embedder.arrived.wait()
            for _ in range(3):
                before = jobs(database_url, "leased_until")
                await until(lambda before=before: jobs(database_url, "leased_until") > before)  # type: ignore[misc]
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
