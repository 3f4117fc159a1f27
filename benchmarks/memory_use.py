"""How much memory a bulk call takes: the largest resident size for few and for many passages.

Each run is a process of its own, whose passages come from a generator. What is kept of each is
its result, some 600 bytes.

Run: python benchmarks/memory_use.py [--passages 10000,100000] [--dimensions 256]
     [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from add import FastEmbedder

from llmemory import AsyncMemory, Settings

SCHEMA = "bench_memory"
WORDS = "the memory of a process grows with what it holds and shrinks when that is let go".split()


def documents(count: int) -> Iterator[dict[str, Any]]:
    """Yield passages of some 400 characters."""
    for number in range(count):
        start = number % len(WORDS)
        words = (WORDS[start:] + WORDS[:start]) * 5
        yield {
            "owner_id": "bench",
            "document_name": f"Passage {number}",
            "content": f"Number {number}. {' '.join(words)}",
        }


def largest_mb() -> float:
    """Return the largest resident size that this process has had, in MB; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def add(count: int, dimensions: int, url: str) -> None:
    """Add `count` passages and print the largest size before and after."""
    settings = Settings(embedding_batch_size=256)
    embedder = FastEmbedder(dimensions)
    async with AsyncMemory(url, schema=SCHEMA, embedder=embedder, settings=settings) as memory:
        await memory.delete_owner("bench")
        before = largest_mb()
        started = time.perf_counter()
        results = await memory.add_documents(documents(count))
        spent_s = time.perf_counter() - started
        assert len(results) == count
        after = largest_mb()
        await memory.delete_owner("bench")
        print(f"{count} {before:.0f} {after:.0f} {spent_s:.0f}")


def main(arguments: argparse.Namespace) -> None:
    """Run each size in a process of its own and print the ratio of the last to the first."""
    url = arguments.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    print(f"{'passages':>9}  {'at start':>9}  {'largest':>9}  {'took':>7}")
    sizes = []
    for count in arguments.passages.split(","):
        command = [sys.executable, __file__, "--one", count]
        command += ["--dimensions", str(arguments.dimensions)]
        command += ["--database-url", url]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        passages, before, after, spent_s = done.stdout.split()
        sizes.append(int(after))
        print(f"{passages:>9}  {before:>6} MB  {after:>6} MB  {spent_s:>5} s", flush=True)
    print(f"ratio {sizes[-1] / sizes[0]:.2f}")


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passages", default="10000,100000", help="numbers with commas between")
    parser.add_argument("--one", type=int, help="add this many in this process")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    if given.one is None:
        main(given)
    else:
        asyncio.run(add(given.one, given.dimensions, given.database_url))
