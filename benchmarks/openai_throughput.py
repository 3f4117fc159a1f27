"""How fast OpenAIEmbedder is beside hand-written httpx, sending the same batches.

Each side has a server, a process of its own, that answers 50 ms after a request and serves
16 connections. By hand means: one client, 16 requests at once, base64 decoded with numpy, nothing
checked and nothing repeated. Both sides take turns, so that a change of the machine's speed meets
both.

With --database-url the passages are added as well, by add_documents into an empty schema each
time, and by reembed. By hand stays what it is: it stores nothing, so that the ratio says how much
of the time is spent on waiting for the provider. How long a provider takes is what --latency-s is
for: one of 50 ms is faster than PostgreSQL writes on two cores.

Run: python benchmarks/openai_throughput.py [--collection FOLDER] [--passages 20000]
     [--batch-size 64] [--dimensions 1536] [--latency-s 0.05] [--connections 16]
     [--database-url postgresql://...] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from passages import passages
from sqlalchemy import text as sql_text
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import AsyncMemory, HashEmbedder, Settings
from llmemory.embedding.openai import OpenAIEmbedder

SERVER = Path(__file__).parent.parent / "tests" / "plugins" / "openai_server.py"
SCHEMA = "bench_openai"


class ByHand:
    """What one would write for this one purpose."""

    def __init__(self, base_url: str, arguments: argparse.Namespace) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": "Bearer key"},
            timeout=60,
            limits=httpx.Limits(
                max_connections=arguments.connections,
                max_keepalive_connections=arguments.connections,
            ),
        )
        self._slots = asyncio.Semaphore(arguments.connections)
        self._batch_size = arguments.batch_size
        self._dimensions = arguments.dimensions

    async def embed(self, texts: list[str]) -> Any:
        """Return one vector per text."""
        batches = range(0, len(texts), self._batch_size)
        return np.concatenate(await asyncio.gather(*(self._batch(texts, at) for at in batches)))

    async def _batch(self, texts: list[str], start: int) -> Any:
        async with self._slots:
            response = await self._client.post(
                "/embeddings",
                json={
                    "model": "text-embedding-3-small",
                    "dimensions": self._dimensions,
                    "encoding_format": "base64",
                    "input": texts[start : start + self._batch_size],
                },
            )
        response.raise_for_status()
        return np.stack(
            [
                np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
                for item in response.json()["data"]
            ]
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
    """Run a server, give its URL."""
    command = [
        sys.executable,
        str(SERVER),
        f"--latency-s={arguments.latency_s}",
        f"--connections={arguments.connections}",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def timed(work: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[float]]:
    """Return a function that tells how many seconds `work` takes."""

    async def run() -> float:
        started = time.perf_counter()
        await work()
        return time.perf_counter() - started

    return run


async def adding(
    arguments: argparse.Namespace, embedder: OpenAIEmbedder, texts: list[str]
) -> float:
    """Return the seconds that adding takes."""
    async with empty_memory(arguments, embedder) as memory:
        return await timed(lambda: memory.add_documents(documents(texts)))()


async def changing_the_model(
    arguments: argparse.Namespace, embedder: OpenAIEmbedder, texts: list[str]
) -> float:
    """Return the seconds that another model's vectors take."""
    async with empty_memory(arguments, HashEmbedder(8)) as memory:
        await memory.add_documents(documents(texts))
        return await timed(lambda: memory.reembed(embedder))()


@asynccontextmanager
async def empty_memory(arguments: argparse.Namespace, embedder: Any) -> AsyncIterator[AsyncMemory]:
    """Give a memory on a schema of its own, which is dropped before and afterwards."""
    engine = create_async_engine(arguments.database_url.replace("://", "+asyncpg://", 1))
    drop = sql_text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    async with engine.begin() as connection:
        await connection.execute(drop)
    # An HNSW index is built before another model is used, which has nothing to do with this.
    settings = Settings(
        embedding_batch_size=arguments.batch_size, chunk_size=10_000, hnsw_owner_vectors=10**9
    )
    async with AsyncMemory(
        arguments.database_url, schema=SCHEMA, embedder=embedder, settings=settings
    ) as memory:
        yield memory
    async with engine.begin() as connection:
        await connection.execute(drop)
    await engine.dispose()


def documents(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what add_documents takes."""
    for number, content in enumerate(texts):
        # Equal texts of a batch would be embedded once.
        named = {"owner_id": "bench", "document_name": str(number)}
        yield {**named, "content": f"{number}. {content}"}


async def main(arguments: argparse.Namespace) -> None:
    """Measure both, in turns."""
    texts = passages(arguments.collection, arguments.passages)
    with server(arguments) as url, server(arguments) as other_url:
        embedder = OpenAIEmbedder(
            "key",
            base_url=url,
            dimensions=arguments.dimensions,
            batch_size=arguments.batch_size,
            max_concurrency=arguments.connections,
        )
        hand = ByHand(other_url, arguments)

        async def ours() -> Any:
            return await embedder.embed(texts, purpose="document")

        async def by_hand() -> Any:
            return await hand.embed(texts)

        # Connections open, and both see the same.
        assert np.array_equal(await ours(), await by_hand())
        requests = -(-len(texts) // arguments.batch_size)
        print(
            f"{len(texts)} passages in {requests} requests, {arguments.dimensions} dimensions, "
            f"{arguments.connections} connections, {arguments.latency_s * 1000:.0f} ms latency"
        )
        ways = {"embed": timed(ours)}
        if arguments.database_url is not None:
            ways["add_documents"] = partial(adding, arguments, embedder, texts)
            ways["reembed"] = partial(changing_the_model, arguments, embedder, texts)
        for name, way in ways.items():
            rates, ratios = [], []
            for _ in range(arguments.rounds):
                times = [await side() for side in (way, timed(by_hand))]
                rates.append([len(texts) / seconds for seconds in times])
                ratios.append(times[1] / times[0])
            mine, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
            print(
                f"{name:<13} {mine:7.0f}/s   httpx by hand {theirs:7.0f}/s   "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        await hand.aclose()
        await embedder.aclose()


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--collection", type=Path, help="folder with corpus.jsonl")
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--latency-s", type=float, default=0.05)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--database-url", help="where to add the passages, too")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
