"""Watching what a block of code does: the statements it sends, the event loop it holds up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import anyio
import asyncpg
import psycopg
import pytest
from anyio.lowlevel import checkpoint
from psycopg.rows import dict_row
from sqlalchemy import Connection, Engine, event

from llmemory import AsyncMemory

TICK_S = 0.01


@pytest.fixture
def statements() -> Callable[[AsyncMemory], Any]:
    """``with statements(memory) as sent``: the list of SQL texts sent by that memory, and COPYs."""
    return _recorded


@contextmanager
def _recorded(memory: AsyncMemory) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(connection: Connection, cursor: Any, statement: str, *others: Any) -> None:
        # Looked up at every statement: a memory that never connected has no engine yet.
        database = memory._database
        engines = [engine for engine, _ in database._own.values()]
        if database.given_engine is not None:
            engines.append(database.given_engine)
        if any(connection.engine.pool is engine.sync_engine.pool for engine in engines):
            sent.append(statement)

    # What goes to the driver's connection is not seen by SQLAlchemy's event: searches, COPY.
    async def fetch(connection: Any, statement: str, *arguments: Any, **options: Any) -> Any:
        sent.append(statement)
        return await fetch_of_asyncpg(connection, statement, *arguments, **options)

    async def execute(cursor: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
        # SQLAlchemy's own cursors give tuples.
        if cursor.row_factory is dict_row:
            sent.append(statement)
        return await execute_of_psycopg(cursor, statement, *arguments, **options)

    async def copy_to_table(connection: Any, table: str, **options: Any) -> Any:
        sent.append(f"COPY {table}")
        return await copy_of_asyncpg(connection, table, **options)

    def copy(cursor: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(statement if isinstance(statement, str) else statement.as_string(cursor))
        return copy_of_psycopg(cursor, statement, *arguments, **options)

    fetch_of_asyncpg = asyncpg.Connection.fetch
    execute_of_psycopg = psycopg.AsyncCursor.execute
    copy_of_asyncpg = asyncpg.Connection.copy_to_table
    copy_of_psycopg = psycopg.AsyncCursor.copy
    with (
        patch.object(asyncpg.Connection, "fetch", fetch),
        patch.object(psycopg.AsyncCursor, "execute", execute),
        patch.object(asyncpg.Connection, "copy_to_table", copy_to_table),
        patch.object(psycopg.AsyncCursor, "copy", copy),
    ):
        event.listen(Engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def round_trips() -> Callable[[AsyncMemory], Any]:
    """``with round_trips(memory) as sent``: ``statements``, and commands sent past SQLAlchemy."""
    return _all_recorded


@contextmanager
def _all_recorded(memory: AsyncMemory) -> Iterator[list[str]]:
    with _recorded(memory) as sent:

        async def execute_by_asyncpg(connection: Any, commands: str, *others: Any) -> Any:
            sent.append(commands)
            return await asyncpg_execute(connection, commands, *others)

        async def execute_by_psycopg(connection: Any, commands: str, **options: Any) -> Any:
            sent.append(commands)
            return await psycopg_execute(connection, commands, **options)

        asyncpg_execute = asyncpg.Connection.execute
        psycopg_execute = psycopg.AsyncConnection.execute
        with (
            patch.object(asyncpg.Connection, "execute", execute_by_asyncpg),
            patch.object(psycopg.AsyncConnection, "execute", execute_by_psycopg),
        ):
            yield sent


def moment_s() -> float:
    """Return how long a million multiplications take here and now; 0.05 s on a common machine.

    An event loop that is never held up for as long is free: seconds would measure the machine.
    """
    taken_s = []
    for _ in range(3):
        began = time.perf_counter()
        sum(number * number for number in range(1_000_000))
        taken_s.append(time.perf_counter() - began)
    return min(taken_s)


@dataclass
class Beat:
    """How evenly the event loop ran."""

    moment_s: float
    largest_gap_s: float = 0.0

    @property
    def moments(self) -> float:
        """Return how long the loop was held up at most, in what ``moment_s`` returns."""
        return self.largest_gap_s / self.moment_s


@pytest.fixture
def heartbeat() -> Callable[[], AbstractAsyncContextManager[Beat]]:
    """``async with heartbeat() as beat``: ``beat.moments`` at most between ticks of 10 ms."""
    return _beating


@asynccontextmanager
async def _beating() -> AsyncIterator[Beat]:
    beat = Beat(moment_s())

    async def tick() -> None:
        last = time.perf_counter()
        try:
            while True:
                await anyio.sleep(TICK_S)
                now = time.perf_counter()
                beat.largest_gap_s = max(beat.largest_gap_s, now - last)
                last = now
        finally:
            beat.largest_gap_s = max(beat.largest_gap_s, time.perf_counter() - last)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        # The first tick must be under way, or a block that never yields would go unseen.
        await anyio.sleep(2 * TICK_S)
        yield beat
        await checkpoint()
        group.cancel_scope.cancel()
