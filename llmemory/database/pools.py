"""Pools of asyncpg as engines: a connection is borrowed from the pool and goes back as it came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory.errors import ClosedError, ConfigurationError, StorageUnavailable

__all__ = ["engine_on_pool", "is_pool"]

# pgvector's types and operators are found through the search path, which pgdbm's shared pools pin
# to pg_catalog. Nothing else here needs a path, so that one schema is enough.
_REACH_PGVECTOR = """
WITH found AS MATERIALIZED (
    SELECT coalesce(
        (
            SELECT n.nspname FROM pg_catalog.pg_extension AS e
            JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
            WHERE e.extname = 'vector'
        ),
        'public'
    ) AS place, pg_catalog.current_setting('search_path') AS before
)
SELECT before, CASE
    WHEN place <> ALL (pg_catalog.current_schemas(true))
    THEN pg_catalog.set_config('search_path', pg_catalog.quote_ident(place), false)
END IS NOT NULL AS is_changed
FROM found
"""
_RESTORE_PATH = "SELECT pg_catalog.set_config('search_path', $1, false)"


def is_pool(value: object) -> bool:
    """Return whether `value` is a pool of asyncpg, such as pgdbm's."""
    import asyncpg

    return isinstance(value, asyncpg.Pool)


def engine_on_pool(find_pool: Callable[[], Any], *, timeout_s: float) -> AsyncEngine:
    """Return an engine whose connections come from a pool of asyncpg and go back to it.

    It holds none itself, so there is nothing to dispose of.

    Args:
        find_pool: Returns the pool; called for each connection.
        timeout_s: Seconds to wait for a free connection.
    """

    async def borrow() -> _BorrowedConnection:
        pool = find_pool()
        # Asked beforehand: in another loop than its own asyncpg may wait for ever.
        if pool._loop is not asyncio.get_running_loop():
            raise ConfigurationError(
                "This pool was made in another event loop, where its connections live. Make pool "
                "and memory in the loop that uses them, or pass a connection string and let the "
                "memory make its connections."
            )
        if pool.is_closing():
            raise ClosedError("The pool that this memory uses is closed; close the pool last.")
        # The server may have ended every connection while it lay idle.
        for _ in range(pool.get_max_size() + 1):
            connection = await _acquire(pool, timeout_s)
            with suppress(*_ended()):
                before, is_changed = await _reach_pgvector(pool, connection)
                return _BorrowedConnection(pool, connection, before if is_changed else None)
        raise StorageUnavailable("The server ends connections as soon as they are used.")

    return create_async_engine(
        "postgresql+asyncpg://", async_creator=borrow, poolclass=NullPool, hide_parameters=True
    )


async def _acquire(pool: Any, timeout_s: float) -> Any:
    try:
        return await pool.acquire(timeout=timeout_s)
    except TimeoutError as error:
        raise StorageUnavailable(
            "No connection of the pool became free in time. Make the pool larger, or look for "
            "connections that are held too long."
        ) from error


async def _reach_pgvector(pool: Any, connection: Any) -> tuple[str, bool]:
    try:
        before, is_changed = await connection.fetchrow(_REACH_PGVECTOR)
    except BaseException:
        # The pool has taken back what is known to have broken; what is not may have, too.
        with suppress(Exception):
            connection.terminate()
        await pool.release(connection)
        raise
    return before, is_changed


def _ended() -> tuple[type[Exception], ...]:
    import asyncpg

    return (
        asyncpg.PostgresConnectionError,
        asyncpg.AdminShutdownError,
        # How asyncpg meets a server's farewell that it had not read yet.
        asyncpg.InternalClientError,
        OSError,
    )


class _BorrowedConnection:
    """What SQLAlchemy takes for a connection of its own, to be closed after use."""

    def __init__(self, pool: Any, connection: Any, search_path: str | None) -> None:
        self._pool = pool
        self._connection = connection
        self._search_path = search_path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def set_type_codec(self, *arguments: Any, **options: Any) -> None:
        """Leave the owner's codecs alone: the library's statements need none."""

    # The pool takes a connection back as soon as it breaks; all calls raise an error from then on.
    def is_closed(self) -> bool:
        try:
            return bool(self._connection.is_closed())
        except Exception:
            return True

    def terminate(self) -> None:
        with suppress(Exception):
            self._connection.terminate()

    async def close(self, **options: Any) -> None:
        is_as_it_came = self._search_path is None
        try:
            if not is_as_it_came:
                with suppress(Exception):
                    await self._connection.execute(_RESTORE_PATH, self._search_path)
                    is_as_it_came = True
        finally:
            if not is_as_it_came:
                # The pool makes another one in its place.
                self.terminate()
            await self._pool.release(self._connection, **options)
