"""Whether adding for one owner at once is as quick as for as many owners: no row is in the way.

Eight tasks add documents, one by one, all for the same owner or each for one of its own. Both take
turns, so that a change of the machine's speed meets both.

Run: python benchmarks/concurrent_adds.py [--documents 60] [--rounds 9]
     [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from passages import passages

from llmemory import AsyncMemory, HashEmbedder, Settings

SCHEMA = "bench_concurrent_adds"
TASKS = 8


async def rate(memory: AsyncMemory, owners: list[str], texts: list[str]) -> float:
    """Return the documents a second that all tasks add together."""

    async def add(task: int) -> None:
        owner = owners[task % len(owners)]
        for number, text in enumerate(texts):
            await memory.add_document(owner, f"{task} {number}", text)

    started = time.perf_counter()
    await asyncio.gather(*map(add, range(TASKS)))
    return TASKS * len(texts) / (time.perf_counter() - started)


async def main(arguments: argparse.Namespace) -> None:
    """Measure round by round and print the median ratio."""
    texts = passages(None, arguments.documents)
    settings = Settings(pool_size=TASKS)
    async with AsyncMemory(
        arguments.database_url, schema=SCHEMA, embedder=HashEmbedder(), settings=settings
    ) as memory:
        several = [f"owner {task}" for task in range(TASKS)]
        await rate(memory, ["warm"], texts[:5])
        ratios, rates = [], []
        for number in range(arguments.rounds):
            ways = [["one"], several] if number % 2 else [several, ["one"]]
            measured = {len(owners): await rate(memory, owners, texts) for owners in ways}
            ratios.append(measured[1] / measured[TASKS])
            rates.append(measured[1])
        for owner in ("warm", "one", *several):
            await memory.delete_owner(owner)
        print(
            f"{TASKS} tasks for one owner: {statistics.median(rates):.0f} documents a second, "
            f"{statistics.median(ratios):.2f} x that of {TASKS} owners"
        )


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=60, help="of each task, a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
