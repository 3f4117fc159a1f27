"""How late an event loop's ticks are while LocalEmbedder works, and while it loads its model.

A process that does nothing else ticks beside it: what its ticks are late by is the machine's.

Run: python benchmarks/local_heartbeat.py MODEL [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from typing import Any

from llmemory import LocalEmbedder

TICK_S = 0.005
LATE_S = 0.05
WORDS = "the memory of a process grows with what it holds and shrinks when that is let go "


def tick_until(ready: Any, stop: Any, results: Any) -> None:
    """Tick in a process of its own until `stop` is set."""
    late_s = []
    ready.set()
    while not stop.is_set():
        started = time.perf_counter()
        time.sleep(TICK_S)
        late_s.append(time.perf_counter() - started - TICK_S)
    results.put(late_s)


async def watched(name: str, work: Callable[[], Awaitable[Any]]) -> None:
    """Tick while `work` runs, and print how late the ticks were."""
    context = multiprocessing.get_context("spawn")
    ready, stop, results = context.Event(), context.Event(), context.Queue()
    beside = context.Process(target=tick_until, args=(ready, stop, results))
    beside.start()
    await asyncio.to_thread(ready.wait)
    late_s: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_S)
            late_s.append(time.perf_counter() - started - TICK_S)

    ticking = asyncio.create_task(tick())
    await work()
    ticking.cancel()
    await asyncio.to_thread(stop.set)
    print(f"{name:<24} {told(late_s)}   beside it {told(await asyncio.to_thread(results.get))}")
    beside.join()


def told(late_s: list[float]) -> str:
    """Return the 99th percentile, the largest, and how many were later than 50 ms."""
    ordered = sorted(late_s)
    percentile = ordered[len(ordered) * 99 // 100]
    count = sum(late > LATE_S for late in ordered)
    return f"p99 {percentile * 1000:4.0f} ms, most {ordered[-1] * 1000:4.0f} ms, {count:3} late"


async def main(model: str, seconds: float) -> None:
    """Watch the loading, then texts of several lengths."""
    embedder = LocalEmbedder(model, device="cpu")
    # What starts the model's process, which imports torch and loads the model.
    await watched("start and one text", lambda: embedder.embed(["text"], purpose="document"))

    async def embed(texts: list[str], purpose: Any) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await embedder.embed(texts, purpose=purpose)

    for name, characters, count in (
        ("a query", 30, 1),
        ("32 short texts", 30, 32),
        ("32 of 1,000 characters", 1_000, 32),
        ("32 of 20,000", 20_000, 32),
        ("one of 2,000,000", 2_000_000, 1),
    ):
        texts = [f"{n} {WORDS * (characters // len(WORDS) + 1)}"[:characters] for n in range(count)]
        purpose = "query" if count == 1 and characters == 30 else "document"
        await watched(name, lambda texts=texts, purpose=purpose: embed(texts, purpose))
    await embedder.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="name or path of a model of sentence-transformers")
    parser.add_argument("--seconds", type=float, default=10, help="how long each case runs")
    given = parser.parse_args()
    asyncio.run(main(given.model, given.seconds))
