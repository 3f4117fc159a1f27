"""Memories that are closed after the test and must not hold a connection then."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import anyio
import pytest

from llmemory import AsyncMemory, HashEmbedder, _bridge
from llmemory import memory as blocking
from plugins.server import fresh_database


class MakeMemory(Protocol):
    """What the fixture ``make_memory`` is."""

    def __call__(self, url: str | None = None, **options: Any) -> AsyncMemory: ...


ENDING_S = 10.0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Check after every test that no thread but the one bridge is left, and no connection taken."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + ENDING_S
    while (left := _threads_of_tests() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads that still run: {left}"
    held = [connections_in_use(core) for core in list(blocking._cores)]
    assert not any(held), f"connections still checked out, by memory: {held}"


def _threads_of_tests() -> set[threading.Thread]:
    """Return what runs besides the bridge, its worker threads and those that look up hosts."""
    # asyncio ends the threads of its default executor, which look up hosts, with their loop.
    threads = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    if (bridge := _bridge._current) is None:
        return threads
    loop = bridge._started.result()
    bridges = [thread for thread in threads if thread.name == "llmemory"]
    workers = [thread for thread in threads if getattr(thread, "loop", None) is loop]
    return threads.difference(bridges[:1], workers)


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
    # What a cancelled call was connecting to is given back as it arrives.
    with anyio.move_on_after(ENDING_S):
        while any(map(connections_in_use, made)):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    held = [connections_in_use(memory) for memory in made]
    for memory in made:
        await memory.close()
    assert not any(held), f"connections still checked out, by memory: {held}"


@pytest.fixture
async def memory(make_memory: MakeMemory) -> AsyncMemory:
    """A memory that connects at its first use."""
    return make_memory()


@pytest.fixture(scope="module")
def stored_database(server_url: str, template: str) -> Iterator[str]:
    """A database with two documents in it, shared by tests that must not change it."""
    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
async def kept(anyio_backend: str, stored_database: str) -> AsyncIterator[tuple[AsyncMemory, str]]:
    """A memory of that database, and the id of a document in it."""
    memory = AsyncMemory(stored_database, embedder=HashEmbedder())
    result = await memory.add_document(
        "acme", "Policy", "Staff have 25 days of leave.", external_id="policy"
    )
    await memory.add_document("other", "Secret", "Other people's text.", external_id="theirs")
    yield memory, result.document_id
    await memory.close()


def connections_in_use(memory: AsyncMemory) -> int:
    """Count the connections that are checked out of the memory's own pools."""
    engines = [engine for engine, _ in memory._database._own.values()]
    return sum(engine.sync_engine.pool.checkedout() for engine in engines)  # type: ignore[attr-defined]
