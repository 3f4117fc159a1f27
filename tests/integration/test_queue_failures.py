"""What fails in the queue, is tried again or given up, and what changes in the meantime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
from integration.helpers import (
    PATIENCE_S,
    GatedEmbedder,
    OddEmbedder,
    fetch,
    paragraphs,
    plain,
    rows,
)
from integration.queue_checker import queue_problems
from integration.queued_documents import SECRET, PickyEmbedder, due, jobs, leave, make_due
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    ChunkToEmbed,
    ContextFailed,
    EmbeddingError,
    ProviderRejected,
    ProviderUnavailable,
    QueueProgress,
    Settings,
)
from llmemory.queue import processing as queue

pytestmark = pytest.mark.anyio


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

    async def test_a_document_that_no_context_can_be_made_for(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        def make(chunk: ChunkToEmbed) -> str:
            if "Private" in chunk.content:
                raise TimeoutError(chunk.content)
            return "Context."

        memory = make_memory(chunk_context=make, settings=Settings(job_attempts=2))
        ids = await leave(memory, "acme", "One.", "Private matters.", "Three.")
        for _ in range(2):
            with pytest.raises(ContextFailed):
                await memory.process_pending_embeddings()
            make_due(database_url)
        assert rows(database_url)["embeddings"] == 2
        (job,) = await memory.list_jobs()
        assert (job.document_id, job.state, job.attempts) == (ids[1], "failed", 2)
        assert job.last_error == (
            "The function chunk_context failed (ContextFailed, caused by TimeoutError). Chunks: 0."
        )

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

            with anyio.fail_after(PATIENCE_S):
                await self.during(memory, embedder, lock)
            assert rows(database_url)["embeddings"] == 1 + ("jobs AS j" in locking)
            await other.rollback()
        make_due(database_url)
        fetch(database_url, "UPDATE llmemory.embedding_jobs SET leased_until = NULL")
        await memory.process_pending_embeddings()
        assert rows(database_url)["embeddings"] == 2
        assert await queue_problems(database_url, embedder) == []
