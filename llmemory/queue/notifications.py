"""Listening for NOTIFY: hints that something may have happened, which may get lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from sqlalchemy import Connection
from sqlalchemy.pool import QueuePool

from llmemory.database.engines import Database

__all__ = ["can_listen", "listen"]

CLOSING_S = 5.0


async def can_listen(database: Database) -> bool:
    """Return whether a connection can be kept for listening without anyone missing it.

    One that was lent by another pool, or that all share, cannot.
    """
    return database.has_sessions and isinstance((await database.engine()).pool, QueuePool)


async def listen(
    database: Database, channel: str, payload: str, on_hint: Callable[[], None]
) -> None:
    """Call `on_hint` for each such notification, and once at first, until the connection is lost.

    The connection leaves its pool, where others may need its place.

    Raises:
        StorageError: The database refused or failed.
    """
    async with database.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await connection.run_sync(Connection.detach)
        by_driver = (
            _listen_by_asyncpg if connection.dialect.driver == "asyncpg" else _listen_by_psycopg
        )
        try:
            await by_driver(raw, channel, payload, on_hint)
        finally:
            # No pool has it any more, and SQLAlchemy leaves psycopg's to the garbage collector.
            with anyio.move_on_after(CLOSING_S, shield=True), suppress(Exception):
                await raw.close()


async def _listen_by_asyncpg(
    raw: Any, channel: str, payload: str, on_hint: Callable[[], None]
) -> None:
    has_ended = asyncio.Event()

    def heard(connection: Any, pid: int, channel: str, received: str) -> None:
        if received == payload:
            on_hint()

    def ended(connection: Any) -> None:
        has_ended.set()

    raw.add_termination_listener(ended)
    await raw.add_listener(channel, heard)
    try:
        on_hint()
        await has_ended.wait()
    finally:
        raw.remove_termination_listener(ended)
        with anyio.CancelScope(shield=True), suppress(Exception):
            await raw.remove_listener(channel, heard)


async def _listen_by_psycopg(
    raw: Any, channel: str, payload: str, on_hint: Callable[[], None]
) -> None:
    from psycopg import sql

    await raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    on_hint()
    async for notice in raw.notifies():
        if notice.payload == payload:
            on_hint()
