"""A server that ends under load: nothing acknowledged is lost, and calls work again."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import pytest
from integration.helpers import broken_documents, fetch, until
from plugins.clusters import Cluster
from plugins.memories import MakeMemory
from plugins.poolers import PgBouncer
from plugins.server import with_driver

from llmemory import AsyncMemory, Settings, StorageUnavailable

pytestmark = pytest.mark.anyio

WRITERS = 8
SEARCHERS = 8
LOAD_S = 0.7
PAUSE_S = 0.02


@dataclass
class Seen:
    """What the callers met: when each failed call began, and which writes were acknowledged."""

    failed: list[float] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    searches: int = 0


@pytest.fixture
async def unretrieved(anyio_backend: str) -> AsyncIterator[None]:
    """Ignore what asyncpg leaves to nobody, out of reach: the end of a COPY that did not begin.

    It refuses to begin one once it has read the server's farewell, after making the future.
    """
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError):
            return
        assert handler is not None
        handler(loop, context)

    loop.set_exception_handler(handle)
    yield
    gc.collect()
    loop.set_exception_handler(handler)


@pytest.mark.usefixtures("unretrieved")
@pytest.mark.parametrize("way", ["asyncpg", "psycopg", "pgbouncer"])
async def test_nothing_acknowledged_is_lost(
    make_memory: MakeMemory,
    make_cluster: Callable[..., Cluster],
    make_pooler: Callable[..., PgBouncer],
    way: str,
) -> None:
    cluster = make_cluster()
    # Ends that are no farewells: PostgreSQL's own, and the system's when memory runs out.
    url = cluster.url
    settings = Settings(pool_size=WRITERS + SEARCHERS)
    if way == "pgbouncer":
        url = make_pooler(url).url(url)
        settings = settings.model_copy(update={"transaction_pooler": True})
    else:
        url = with_driver(url, f"postgresql+{way}")
    memory = make_memory(url, settings=settings)
    await memory.add_document("acme", "First", "Days of leave.", external_id="first")
    for end in (cluster.stop, cluster.kill):
        async with loaded(memory) as seen:
            await until(lambda: seen.acknowledged and seen.searches)
            await anyio.sleep(LOAD_S)
            assert not seen.failed
            began = time.monotonic()
            await anyio.to_thread.run_sync(end)
            down = time.monotonic()
            assert len(seen.failed) <= most_failures(began, down)
            await anyio.to_thread.run_sync(cluster.start)
            await until_it_works(memory)
            recovered = time.monotonic()
            acknowledged = len(seen.acknowledged)
            await anyio.sleep(LOAD_S)
            await until(lambda: len(seen.acknowledged) > acknowledged)  # noqa: B023
        assert seen.failed
        # Once one call has worked, none fails any more.
        assert max(seen.failed) <= recovered
        assert len(seen.failed) <= most_failures(began, recovered)
        stored = fetch(cluster.url, "SELECT external_id FROM llmemory.documents")
        assert seen.acknowledged <= {external_id for (external_id,) in stored}
        assert broken_documents(cluster.url) == []


def most_failures(began: float, ended: float) -> float:
    """Return how often all callers together can have failed: once at first, then at each try."""
    return (WRITERS + SEARCHERS) * (1 + (ended - began) / PAUSE_S)


@asynccontextmanager
async def loaded(memory: AsyncMemory) -> AsyncIterator[Seen]:
    """Have callers add and search all the time, each pausing after a failure."""
    seen = Seen()
    is_over = anyio.Event()

    async def write(caller: int) -> None:
        number = 0
        while not is_over.is_set():
            name = f"{id(seen)}-{caller}-{number}"
            began = time.monotonic()
            try:
                await memory.add_document("acme", name, f"Leave {name}.", external_id=name)
            except StorageUnavailable:
                seen.failed.append(began)
                await anyio.sleep(PAUSE_S)
            else:
                seen.acknowledged.add(name)
                number += 1

    async def search() -> None:
        while not is_over.is_set():
            began = time.monotonic()
            try:
                assert await memory.search("acme", "leave")
            except StorageUnavailable:
                seen.failed.append(began)
                await anyio.sleep(PAUSE_S)
            else:
                seen.searches += 1

    async with anyio.create_task_group() as group:
        for caller in range(WRITERS):
            group.start_soon(write, caller)
        for _ in range(SEARCHERS):
            group.start_soon(search)
        yield seen
        is_over.set()
    assert seen.searches


async def until_it_works(memory: AsyncMemory) -> None:
    with anyio.fail_after(40):
        while True:
            try:
                await memory.search("acme", "leave")
                return
            except StorageUnavailable:
                await anyio.sleep(PAUSE_S)
