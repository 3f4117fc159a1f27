"""The model is changed from 256 to 384 dimensions while everything is searched all the time.

Tasks of this process and another process search without a pause while `reembed` runs. Each answer
is compared with the exact answers of either model: it must be one of the two. Memory with the
former embedder must never see the new one's, and nothing may fail.

Run: python benchmarks/reembed.py [--chunks 10000] [--tasks 4] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from passages import passages

from llmemory import AsyncMemory, HashEmbedder, MaintenanceProgress
from llmemory.models import quoted_identifier

SCHEMA = "bench_reembed"
OWNERS = 5
FORMER, NEW = 256, 384
TYPES = ("vector", "hybrid")

Key = tuple[str, str, str]


async def answer(memory: AsyncMemory, key: Key) -> str:
    """Return what a search finds, as one value."""
    owner, query, search_type = key
    hits = await memory.search(owner, query, search_type=search_type)
    return json.dumps([(hit.chunk_id, hit.similarity, hit.score) for hit in hits])


async def search_all_the_time(url: str, keys: list[Key]) -> None:
    """Search with the former embedder until a line comes in; then print what was found."""
    async with AsyncMemory(url, schema=SCHEMA, embedder=HashEmbedder(FORMER)) as memory:
        told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        print("ready", flush=True)
        found: Counter[tuple[Key, str]] = Counter()
        while not told.done():
            for key in keys:
                found[key, await answer(memory, key)] += 1
    print(json.dumps([[key, hits, count] for (key, hits), count in found.items()]))


async def run(url: str, chunks: int, tasks: int) -> None:
    """Fill a schema, change its model under searches, and judge every answer."""
    memory = AsyncMemory(url, schema=SCHEMA, embedder=HashEmbedder(FORMER))
    await memory.initialize()
    texts = passages(None, chunks)
    await memory.add_documents(
        {"owner_id": f"owner {number % OWNERS}", "document_name": str(number), "content": text}
        for number, text in enumerate(texts)
    )
    keys = [
        (f"owner {number % OWNERS}", " ".join(texts[number].split()[:8]), kind)
        for number in range(0, chunks, max(1, chunks // 15))
        for kind in TYPES
    ]
    former = {key: await answer(memory, key) for key in keys}
    other = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [sys.executable, __file__, "--database-url", url, "--search", json.dumps(keys)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert await asyncio.to_thread(other.stdout.readline) == "ready\n"

    found: list[tuple[Key, str]] = []
    slowest_s = 0.0
    ended = asyncio.Event()

    async def keep_searching() -> None:
        nonlocal slowest_s
        while not ended.is_set():
            for key in keys:
                started = time.perf_counter()
                found.append((key, await answer(memory, key)))
                slowest_s = max(slowest_s, time.perf_counter() - started)

    def show(progress: MaintenanceProgress) -> None:
        print(f"\r{progress.step}: {progress.done:.0f} of {progress.total} ", end="", flush=True)

    searching = [asyncio.create_task(keep_searching()) for _ in range(tasks)]
    started = time.perf_counter()
    result = await memory.reembed(HashEmbedder(NEW), on_progress=show)
    taken_s = time.perf_counter() - started
    await asyncio.sleep(0.5)
    ended.set()
    # An error of a search is raised here.
    await asyncio.gather(*searching)
    output, _ = await asyncio.to_thread(other.communicate, "\n")
    assert other.returncode == 0, "the other process failed"

    new = {key: await answer(memory, key) for key in keys}
    kinds: Counter[str] = Counter()
    for key, hits in found:
        kinds["former" if hits == former[key] else "new" if hits == new[key] else "mixed"] += 1
    theirs: Counter[str] = Counter()
    for key, hits, count in json.loads(output):
        theirs["former" if hits == former[tuple(key)] else "mixed"] += count
    (space,) = [space for space in await memory.list_spaces() if space.state == "in use"]
    started = time.perf_counter()
    dropped = await memory.drop_space(result.replaced_space_id or 0)
    print(f"\n{result.embeddings_created} vectors, {FORMER} to {NEW} dimensions: {taken_s:.1f} s")
    print(f"this process: {dict(kinds)}, slowest search {slowest_s * 1000:.0f} ms, 0 errors")
    print(f"another process, with the former embedder: {dict(theirs)}, 0 errors")
    print(f"missing afterwards: {space.missing}")
    print(f"{dropped} former vectors dropped in {time.perf_counter() - started:.1f} s")
    assert not kinds["mixed"] + theirs["mixed"], "a mixed result"
    await drop_schema(memory)
    await memory.close()


async def drop_schema(memory: AsyncMemory) -> None:
    """Leave nothing behind."""
    async with memory._database.transaction() as connection:
        await connection.exec_driver_sql(f"DROP SCHEMA {quoted_identifier(SCHEMA)} CASCADE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--database-url", default="embedded://")
    parser.add_argument("--search", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search is not None:
        keys: list[Any] = [tuple(key) for key in json.loads(arguments.search)]
        asyncio.run(search_all_the_time(arguments.database_url, keys))
    else:
        asyncio.run(run(arguments.database_url, arguments.chunks, arguments.tasks))


if __name__ == "__main__":
    main()
