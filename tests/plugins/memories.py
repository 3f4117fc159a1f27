"""Memories that are closed after the test and must not hold a connection then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from llmemory import AsyncMemory, HashEmbedder


class MakeMemory(Protocol):
    """What the fixture ``make_memory`` is."""

    def __call__(self, url: str | None = None, **options: Any) -> AsyncMemory: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """SQLAlchemy's async engine runs on asyncio only."""
    return "asyncio"


@pytest.fixture
def embedder() -> HashEmbedder:
    """The embedder of the test's memories, where no other is passed."""
    return HashEmbedder()


@pytest.fixture
async def make_memory(
    anyio_backend: str, database_url: str, embedder: HashEmbedder
) -> AsyncIterator[MakeMemory]:
    """Make memories on ``database_url``, or on another URL or engine if one is given."""
    made: list[AsyncMemory] = []

    def make(url: str | None = None, **options: Any) -> AsyncMemory:
        if url is None and "engine" not in options:
            url = database_url
        memory = AsyncMemory(url, **{"embedder": embedder, **options})
        made.append(memory)
        return memory

    yield make
    held = [connections_in_use(memory) for memory in made]
    for memory in made:
        await memory.close()
    assert not any(held), f"connections still checked out, by memory: {held}"


@pytest.fixture
async def memory(make_memory: MakeMemory) -> AsyncMemory:
    """A memory that connects at its first use."""
    return make_memory()


def connections_in_use(memory: AsyncMemory) -> int:
    """Count the connections that are checked out of the memory's own pools."""
    engines = [engine for engine, _ in memory._database._own.values()]
    return sum(engine.sync_engine.pool.checkedout() for engine in engines)  # type: ignore[attr-defined]
