"""What a search costs beside hand-written asyncpg that runs the very same SQL.

By hand means a pool of asyncpg, the statement's text, its arguments and the rows as they come; the
texts and arguments are those that `AsyncMemory` sends. A search through an HNSW index needs
settings that hold for it alone: by hand sends them as well, and beside it, "set once" has them on
all of its connections for good, as an application that does nothing else with them could. Neither
side embeds: the memory knows the queries' vectors, and by hand they are there as well. Latency: one
search after the other, both sides by turns, each with another query at a time. Throughput: 16
tasks on each side by turns.

Run: python benchmarks/overhead.py [--sizes 300 2000] [--searches 600] [--rounds 7]
     [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import asyncpg
from passages import passages
from pgvector.asyncpg import register_vector

from llmemory import AsyncMemory, HashEmbedder, SearchType, Settings

SCHEMA = "bench_overhead"
CALLERS = 16
LIMIT = 10
FOR_INDEXES = {
    "hnsw.ef_search": "100",
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": "20000",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit_above_cost": "-1",
    "max_parallel_workers_per_gather": "0",
}

BEGIN = "; ".join(
    ["BEGIN", *(f"SET LOCAL {name} = {value}" for name, value in FOR_INDEXES.items())]
)

Call = Callable[[int], Awaitable[Any]]


async def recorded(
    memory: AsyncMemory, owner: str, queries: list[str], search_type: str
) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the statements and arguments that a memory sends for `queries`."""
    sent: list[tuple[str, tuple[Any, ...]]] = []

    async def record(connection: asyncpg.Connection, statement: str, *arguments: Any) -> Any:
        sent.append((statement, arguments))
        return await fetch(connection, statement, *arguments)

    fetch = asyncpg.Connection.fetch
    with patch.object(asyncpg.Connection, "fetch", record):
        for query in queries:
            await memory.search(owner, query, search_type=search_type, limit=LIMIT)
    return sent[-len(queries) :]


async def latency(call: Call, number: int) -> float:
    """Return the milliseconds of one search."""
    started = time.perf_counter()
    await call(number)
    return (time.perf_counter() - started) * 1000


async def throughput(call: Call, count: int) -> float:
    """Return the searches a second of all tasks together."""

    async def some(start: int) -> None:
        for number in range(start, count, CALLERS):
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(some(start) for start in range(CALLERS)))
    return count / (time.perf_counter() - started)


@dataclass(frozen=True)
class ByHand:
    """The other side: its pool, and whether it sends what an indexed search needs each time."""

    name: str
    pool: asyncpg.Pool
    sends_settings: bool = False

    async def fetch(self, statement: str, arguments: tuple[Any, ...]) -> Any:
        """Return the rows."""
        async with self.pool.acquire() as connection:
            if not self.sends_settings:
                return await connection.fetch(statement, *arguments)
            await connection.execute(BEGIN)
            rows = await connection.fetch(statement, *arguments)
            await connection.execute("COMMIT")
            return rows


async def measure(
    memory: AsyncMemory,
    other: ByHand,
    owner: str,
    search_type: str,
    options: argparse.Namespace,
) -> None:
    """Print one line: p50s, what the library adds, and the share of the throughput."""
    texts = passages(None, 300)
    generator = random.Random(5)
    queries = [" ".join(generator.sample(text.split(), 4)) for text in texts]
    sent = await recorded(memory, owner, queries, search_type)

    async def ours(number: int) -> Any:
        query = queries[number % len(queries)]
        return await memory.search(owner, query, search_type=search_type, limit=LIMIT)

    async def by_hand(number: int) -> Any:
        return await other.fetch(*sent[number % len(sent)])

    for call in (ours, by_hand):
        await throughput(call, len(queries))
    times: dict[str, list[float]] = {"ours": [], "by hand": []}
    for number in range(options.searches):
        times["ours"].append(await latency(ours, number))
        # Another query: what this one has read lies in the processor's caches now.
        times["by hand"].append(await latency(by_hand, number + len(queries) // 2))
    p50 = {name: statistics.median(values) for name, values in times.items()}
    shares = []
    for _ in range(options.rounds):
        rate = await throughput(ours, options.searches)
        shares.append(rate / await throughput(by_hand, options.searches))
    print(
        f"{owner:>12} {search_type:<7} ours {p50['ours']:6.2f} ms"
        f"  {other.name} {p50['by hand']:6.2f} ms"
        f"  more {p50['ours'] - p50['by hand']:5.2f} ms  x {p50['ours'] / p50['by hand']:.2f}"
        f"  throughput at {CALLERS}: {statistics.median(shares):.2f}",
        flush=True,
    )


async def main(options: argparse.Namespace) -> None:
    """Fill, measure, drop."""
    url = options.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    settings = Settings(pool_size=CALLERS)
    async with (
        AsyncMemory(url, schema=SCHEMA, embedder=HashEmbedder(256), settings=settings) as memory,
        asyncpg.create_pool(url, min_size=CALLERS, max_size=CALLERS, init=register_vector) as plain,
        asyncpg.create_pool(
            url,
            min_size=CALLERS,
            max_size=CALLERS,
            init=register_vector,
            server_settings=FOR_INDEXES,
        ) as tuned,
    ):
        for size in options.sizes:
            owner = f"{size} chunks"
            await memory.delete_owner(owner)
            await memory.add_documents(
                {"owner_id": owner, "document_name": f"d{number}", "content": text}
                for number, text in enumerate(passages(None, size))
            )
        await memory.maintain()
        await plain.execute(f"VACUUM ANALYZE {SCHEMA}.chunks")
        for size in options.sizes:
            for search_type in SearchType:
                sides = [ByHand("by hand", plain)]
                if size >= settings.hnsw_owner_vectors and search_type != "text":
                    sides = [ByHand("by hand", plain, True), ByHand("set once", tuned)]
                for other in sides:
                    await measure(memory, other, f"{size} chunks", search_type.value, options)
        await plain.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 2000])
    parser.add_argument("--searches", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
