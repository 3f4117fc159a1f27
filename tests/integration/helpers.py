"""What several of these tests look at or provoke: rows, slow and broken embedders, long texts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import anyio
import numpy as np
import psycopg
from psycopg import sql

from llmemory import AsyncMemory, HashEmbedder

TABLES = ("documents", "chunks", "embeddings", "embedding_jobs", "lexical_statistics")
# What hangs takes as long, and nothing else on the slowest machine.
PATIENCE_S = 120.0
WRITES = ("INSERT", "UPDATE", "DELETE", "COPY")


def rows(url: str, owner_id: str | None = None, schema: str = "llmemory") -> dict[str, int]:
    """Count the rows of every table with an owner, of all owners or of one."""
    counted = {}
    with psycopg.connect(plain(url)) as connection:
        for table in TABLES:
            query = sql.SQL("SELECT count(*) FROM {} WHERE %(owner)s::text IS NULL OR ").format(
                sql.Identifier(schema, table)
            ) + sql.SQL("owner_id = %(owner)s")
            (counted[table],) = connection.execute(query, {"owner": owner_id}).fetchone() or (0,)
    return counted


def fetch(url: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a query of a test's own."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        cursor = connection.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def plain(url: str) -> str:
    """Return a URL that psycopg itself understands."""
    return "postgresql://" + url.partition("://")[2]


def broken_documents(url: str, space_id: int = 1) -> list[tuple[Any, ...]]:
    """Return documents that are not whole: chunks missing, doubled, or without vector and job."""
    return fetch(
        url,
        """
        SELECT d.owner_id, d.external_id, d.chunk_count, count(c.chunk_id), count(e.chunk_id)
        FROM llmemory.documents AS d
        LEFT JOIN llmemory.chunks AS c USING (owner_id, document_id)
        LEFT JOIN llmemory.embeddings AS e
            ON (e.owner_id, e.chunk_id, e.space_id) = (c.owner_id, c.chunk_id, %s)
        GROUP BY d.owner_id, d.document_id
        HAVING count(c.chunk_id) <> d.chunk_count
            OR count(DISTINCT c.position) <> d.chunk_count
            OR bool_or(
                c.chunk_id IS NULL
                OR substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset)
                    <> c.content
            )
            OR (
                count(e.chunk_id) <> d.chunk_count
                AND NOT EXISTS (
                    SELECT FROM llmemory.embedding_jobs AS j
                    WHERE (j.owner_id, j.document_id, j.space_id)
                        = (d.owner_id, d.document_id, %s)
                )
            )
        """,
        space_id,
        space_id,
    )


def writes(sent: Sequence[str]) -> list[str]:
    """Return those of the recorded statements that change something."""
    return [text for text in sent if text.lstrip().upper().startswith(WRITES)]


def paragraphs(*words: str, length: int = 1500) -> str:
    """Return a text of one paragraph per word, each long enough to be a chunk of its own."""
    return "\n\n".join((f"{word} " * (length // (len(word) + 1))).strip() + "." for word in words)


class GatedEmbedder(HashEmbedder):
    """Waits in ``embed`` for documents until the test opens the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = anyio.Event()
        self.gate = anyio.Event()

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if purpose == "document" and not self.gate.is_set():
            self.arrived.set()
            await self.gate.wait()
        return await super().embed(texts, purpose=purpose)


class OddEmbedder(HashEmbedder):
    """Returns what it is told to, or raises it."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__(dimensions=8)
        self.answer = answer

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        if self.answer is None:
            return await super().embed(texts, purpose=purpose)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(len(texts)) if callable(self.answer) else self.answer


async def add_and_search(memory: AsyncMemory, name: str = "a") -> int:
    """Add one more document that a search for "leave" finds; return how many it finds."""
    await memory.add_document("acme", name, "Days of leave.")
    return len(await memory.search("acme", "leave", limit=100))


async def together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run calls at once, all to their end; raise the first error, else return their results."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def kill_after(lines: int, script: str, url: str) -> None:
    """Run a script, kill it after some lines of its output, and end its sessions."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    fetch(
        url,
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'llmemory' "
        "AND pid <> pg_backend_pid()",
    )


async def until(is_so: Callable[[], Any], *, within_s: float = PATIENCE_S) -> None:
    """Wait for what another process or the server is about to do."""
    with anyio.fail_after(within_s):
        while not is_so():  # noqa: ASYNC110 - nobody here can set an event
            await anyio.sleep(0.01)


def wait_until(is_so: Callable[[], Any], *, within_s: float = PATIENCE_S) -> None:
    """Do what ``until`` does, where no event loop runs."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def zeros(count: int) -> Any:
    """Return vectors without a direction, in the shape that OddEmbedder announces."""
    return np.zeros((count, 8), dtype=np.float32)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all that a traceback would show with it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
