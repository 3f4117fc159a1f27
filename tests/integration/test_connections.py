"""Connections that end while they lie in the pool, or in the middle of a search."""

from __future__ import annotations

import asyncio
import gc

import anyio
import anyio.lowlevel
import psycopg
import pytest
from integration.helpers import fetch
from plugins.memories import MakeMemory
from sqlalchemy.pool import QueuePool

from llmemory import Settings

pytestmark = pytest.mark.anyio

END = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'llmemory'"
)


@pytest.mark.direct("ends the server's connections, and reads the answer through one of them")
async def test_what_the_server_has_closed_is_not_given_out(
    make_memory: MakeMemory, driver_url: str, database_url: str
) -> None:
    memory = make_memory(driver_url)
    await memory.add_document("acme", "a", "Days of leave.")
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(memory.search, "acme", "leave")
    with psycopg.connect(database_url, autocommit=True) as connection:
        (ended,) = connection.execute(END).fetchone() or (0,)
    assert ended >= 1
    # What asyncpg reads from a socket, it reads when the loop runs.
    await anyio.sleep(0.2)
    assert await memory.search("acme", "leave")
    assert (await memory.add_document("acme", "b", "More days.")).status == "created"


@pytest.mark.direct("counts the server's connections, which are the pooler's")
async def test_what_arrives_after_the_end_is_closed(
    make_memory: MakeMemory, driver_url: str, database_url: str
) -> None:
    for steps in range(1, 40, 6):
        memory = make_memory(driver_url)
        async with memory._database.connect():
            waiting = asyncio.create_task(memory.health())
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            waiting.cancel()
            await asyncio.wait([waiting])
            await memory.close()
    with anyio.fail_after(20):
        while fetch(database_url, SESSIONS) != [(0,)]:  # noqa: ASYNC110
            await anyio.sleep(0.02)
    # The driver warns of one that was only forgotten.
    gc.collect()


async def test_cancelled_at_any_moment_no_connection_is_lost(
    make_memory: MakeMemory, driver_url: str
) -> None:
    settings = Settings(pool_size=1, pool_overflow=1, pool_timeout_s=60)
    memory = make_memory(driver_url, settings=settings)
    await memory.add_document("acme", "a", "Days of leave.")
    for moment in range(24):
        # A cancelled statement costs its connection: this one finds the next one lying ready.
        assert await memory.search("acme", "leave")
        call = asyncio.ensure_future(memory.search("acme", "leave"))
        for _ in range(moment):
            await asyncio.sleep(0)
        call.cancel()
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome, list | asyncio.CancelledError), repr(outcome)
    # One that was lost would say so now.
    gc.collect()
    pool = (await memory._database.engine()).pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0
