"""What the blocking face costs: `Memory` beside `AsyncMemory`, the same search in both.

Latency: one caller, one search after the other. Throughput: 16 threads over one Memory beside
16 tasks over one AsyncMemory. Both sides take turns, so that a change of the machine's speed meets
both. Each side has its own pool of connections.

Run: python benchmarks/blocking.py [--passages 2000] [--searches 1000] [--rounds 7]
     [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from passages import passages

from llmemory import AsyncMemory, HashEmbedder, Memory, Settings

OWNER = "bench"
SCHEMA = "bench_blocking"
CALLERS = 16


class Blocking:
    """`Memory`, called from this thread or from many."""

    def __init__(self, memory: Memory, queries: list[str]) -> None:
        self._memory = memory
        self._queries = queries
        self._threads = ThreadPoolExecutor(CALLERS)

    def latency(self, query: str) -> float:
        """Return the seconds of one search."""
        started = time.perf_counter()
        self._memory.search(OWNER, query)
        return time.perf_counter() - started

    def throughput(self) -> float:
        """Return the searches a second of all threads together."""
        started = time.perf_counter()
        shares = [self._queries[start::CALLERS] for start in range(CALLERS)]
        list(self._threads.map(self._search_all, shares))
        return len(self._queries) / (time.perf_counter() - started)

    def _search_all(self, queries: list[str]) -> None:
        for query in queries:
            self._memory.search(OWNER, query)


class Asynchronous:
    """`AsyncMemory`, called by one task or by many."""

    def __init__(self, memory: AsyncMemory, queries: list[str], runner: asyncio.Runner) -> None:
        self._memory = memory
        self._queries = queries
        self._runner = runner

    def latency(self, query: str) -> float:
        """Return the seconds of one search."""
        return self._runner.run(self._latency(query))

    async def _latency(self, query: str) -> float:
        started = time.perf_counter()
        await self._memory.search(OWNER, query)
        return time.perf_counter() - started

    def throughput(self) -> float:
        """Return the searches a second of all tasks together."""
        return self._runner.run(self._throughput())

    async def _throughput(self) -> float:
        started = time.perf_counter()
        shares = [self._queries[start::CALLERS] for start in range(CALLERS)]
        await asyncio.gather(*map(self._search_all, shares))
        return len(self._queries) / (time.perf_counter() - started)

    async def _search_all(self, queries: list[str]) -> None:
        for query in queries:
            await self._memory.search(OWNER, query)


def main() -> None:
    """Print the median latencies and throughputs of both, and what lies between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--database-url")
    arguments = parser.parse_args()
    texts = passages(None, arguments.passages)
    queries = [" ".join(text.split()[:4]) for text in texts[: arguments.searches]]
    settings = Settings(pool_size=CALLERS, pool_overflow=0)
    options = {"schema": SCHEMA, "settings": settings, "embedder": HashEmbedder()}
    with (
        Memory(arguments.database_url, **options) as memory,
        asyncio.Runner() as runner,
    ):
        memory.delete_owner(OWNER)
        memory.add_documents(
            {"owner_id": OWNER, "document_name": str(number), "content": text}
            for number, text in enumerate(texts)
        )
        blocking = Blocking(memory, queries)
        asynchronous = Asynchronous(AsyncMemory(arguments.database_url, **options), queries, runner)
        for side in (blocking, asynchronous):
            side.throughput()
        print_latencies(blocking, asynchronous, queries)
        print_throughputs(blocking, asynchronous, arguments.rounds)
        memory.delete_owner(OWNER)


def print_latencies(blocking: Blocking, asynchronous: Asynchronous, queries: list[str]) -> None:
    """Print the median latency of each side, their difference and ratio."""
    pairs = [(blocking.latency(query), asynchronous.latency(query)) for query in queries]
    ours, theirs = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    print(f"p50 of a search     Memory {ours:6.2f} ms      AsyncMemory {theirs:6.2f} ms")
    more, ratio = ours - theirs, ours / theirs
    print(f"                    {more:+.2f} ms (target: at most +0.40), ratio {ratio:.2f}")


def print_throughputs(blocking: Blocking, asynchronous: Asynchronous, rounds: int) -> None:
    """Print the median throughput of each side and their ratio."""
    pairs = [(blocking.throughput(), asynchronous.throughput()) for _ in range(rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"searches a second   {CALLERS} threads {ours:6.0f}      {CALLERS} tasks {theirs:6.0f}")
    print(f"                    ratio {ratio:.2f} (target: at least 0.80)")


if __name__ == "__main__":
    main()
