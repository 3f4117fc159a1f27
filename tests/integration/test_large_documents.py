"""A document of 5 MB: off the event loop, and without a memory spike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
from plugins.memories import MakeMemory
from plugins.server import with_driver

from llmemory import AsyncMemory, HashEmbedder, Settings, ValidationError

pytestmark = pytest.mark.anyio

SIZE = 5_000_000
SENTENCE = "The quick brown fox jumps over the lazy dog and has 25 days of leave. "
PARAGRAPH = (SENTENCE * 12).strip()


def filled(unit: str, size: int = SIZE) -> str:
    return (unit * (size // len(unit.encode()) + 1))[:size]


TEXTS: dict[str, tuple[str, str]] = {
    "text": ("text", filled(f"{PARAGRAPH}\n\n")),
    "markdown": ("markdown", filled(f"# One\n\n{PARAGRAPH}\n\n## Two\n\n{PARAGRAPH}\n\n")),
    "markdown without headings": ("markdown", filled(f"{PARAGRAPH}\n")),
    "one line": ("text", filled(SENTENCE)),
    "one line of markdown": ("markdown", filled(SENTENCE)),
    "one word": ("text", "x" * SIZE),
    "empty lines": ("markdown", "\n" * (SIZE - 1) + "x"),
}


class ThreadedEmbedder(HashEmbedder):
    """As a real one: as many dimensions, and not on the event loop."""

    def __init__(self) -> None:
        super().__init__(dimensions=1024)

    async def embed(self, texts: Any, *, purpose: Any) -> Any:
        return await anyio.to_thread.run_sync(self.vectors, len(texts))

    def vectors(self, count: int) -> Any:
        return np.random.default_rng(1).standard_normal((count, 1024), dtype=np.float32)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("driver", "name"),
    [("postgresql", name) for name in TEXTS] + [("postgresql+psycopg", "text")],
)
async def test_the_event_loop_stays_free(
    make_memory: MakeMemory,
    database_url: str,
    heartbeat: Callable[[], Any],
    driver: str,
    name: str,
) -> None:
    document_type, content = TEXTS[name]
    memory = make_memory(with_driver(database_url, driver), embedder=ThreadedEmbedder())
    await memory.add_document("acme", "warm", "Up.")
    gaps = []
    # A machine that is busy with something else gets further chances.
    for attempt in range(4):
        async with heartbeat() as beat:
            result = await memory.add_document("acme", name, content, document_type=document_type)
        assert result.chunks_created > 0
        gaps.append(beat.largest_gap_s)
        if gaps[attempt] < 0.05:
            break
    assert min(gaps) < 0.05


@pytest.mark.alone
@pytest.mark.parametrize("embedder", [HashEmbedder], ids=["hash"])
async def test_the_event_loop_stays_free_with_the_embedder_for_tests(
    make_memory: MakeMemory, heartbeat: Callable[[], Any], embedder: Any
) -> None:
    memory = make_memory(embedder=embedder())
    await memory.add_document("acme", "warm", "Up.")
    gaps = []
    for _ in range(4):
        async with heartbeat() as beat:
            await memory.add_document("acme", "a", TEXTS["text"][1], external_id="a")
            await memory.add_document("acme", "a", TEXTS["text"][1] + "!", external_id="a")
            await memory.add_document("acme", "a", TEXTS["text"][1] + "!", external_id="a")
            await memory.add_documents(
                [{"owner_id": "acme", "document_name": "a", "content": TEXTS["text"][1]}]
            )
        gaps.append(beat.largest_gap_s)
        if gaps[-1] < 0.05:
            break
    assert min(gaps) < 0.05


MEASURE = """
import asyncio, gc, resource, sys
from llmemory import AsyncMemory, HashEmbedder

url, kind, unit, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    memory = AsyncMemory(url, embedder=HashEmbedder())
    warm = unit * (100_000 // len(unit.encode()))
    await memory.add_document("acme", "warm", warm, document_type=kind)
    content = unit * (size // len(unit.encode()))
    gc.collect()
    before = peak()
    result = await memory.add_document("acme", "large", content, document_type=kind)
    print(result.chunks_created, peak() - before)
    await memory.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("text", f"{PARAGRAPH}\n\n"),
        ("markdown", f"# One\n\n{PARAGRAPH}\n\n## Two\n\n{PARAGRAPH}\n\n"),
        ("text", SENTENCE),
        ("text", "Grüße 🙂 und Urlaub. "),
    ],
    ids=["text", "markdown", "one line", "emoji"],
)
def test_memory_stays_below_ten_times_the_size(database_url: str, kind: str, unit: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, database_url, kind, unit, str(SIZE)],
        capture_output=True,
        text=True,
        check=True,
    )
    chunks, growth = map(int, run.stdout.split())
    assert chunks > 500
    assert growth < 10 * SIZE


async def test_all_of_it_is_stored_and_found(memory: AsyncMemory) -> None:
    middle = SIZE // 2
    text = TEXTS["text"][1]
    content = text[:middle] + " xylophone zebra " + text[middle:]
    result = await memory.add_document("acme", "a", content)
    (hit, *_) = await memory.search("acme", "xylophone", search_type="text")
    assert content[hit.start : hit.end] == hit.content
    assert "xylophone" in hit.content
    assert (await memory.get_document("acme", result.document_id)).content == content
    assert (await memory.get_statistics("acme")).content_bytes == len(content)


async def test_a_document_at_and_above_the_limit(memory: AsyncMemory) -> None:
    with pytest.raises(ValidationError, match="max_content_bytes"):
        await memory.add_document("acme", "a", "ü" * 5_000_001)
    assert (await memory.get_statistics("acme")).document_count == 0


async def test_the_limit_itself_may_be_stored(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(max_content_bytes=1_000_000))
    await memory.add_document("acme", "a", filled(SENTENCE, 1_000_000))
    with pytest.raises(ValidationError):
        await memory.add_document("acme", "a", filled(SENTENCE, 1_000_001))
