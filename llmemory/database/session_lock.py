"""Advisory locks of a session: of several runs of something long, one works.

They save work twice done. Behind a pooler that shares sessions, a transaction holds them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.statements.maintenance import TRY_LOCK, TRY_LOCK_IN_TRANSACTION, UNLOCK

__all__ = ["session_lock"]

POLL_S = 0.2

# What takes long must neither be cut off nor leave anything set for the connection's next user.
_PREPARE = text("SELECT set_config('statement_timeout', '0', false)")
_RESTORE = text("RESET statement_timeout")
_WAIT_PATIENTLY = text("SET LOCAL idle_in_transaction_session_timeout = 0")


@asynccontextmanager
async def session_lock(
    database: Database, connection: AsyncConnection, name: str, *, wait: bool = False
) -> AsyncIterator[bool]:
    """Hold the lock `name` within the block, where statements may take as long as they take.

    Behind a pooler, what limits statements stays as the role has it: set for a session, it would
    meet others.

    Args:
        database: Where `connection` comes from, and another one where sessions are shared.
        connection: In autocommit; the lock ends with its session.
        name: What is locked.
        wait: Whether to wait until it is free. Else the block is told that it is not.
    """
    values = {"lock_name": name}
    if not database.has_sessions:
        async with _transaction_lock(database, values, wait=wait) as is_ours:
            yield is_ours
        return
    # A lock tells nobody in this process that it is free.
    while not (is_ours := await _try(connection, TRY_LOCK, values)) and wait:  # noqa: ASYNC110
        await anyio.sleep(POLL_S)
    if not is_ours:
        yield False
        return
    try:
        with translated_errors():
            await connection.execute(_PREPARE)
        yield True
    finally:
        # The lock and the setting end with the session, if that is lost.
        if not connection.invalidated:
            with anyio.CancelScope(shield=True):
                try:
                    await connection.execute(_RESTORE)
                    await connection.execute(UNLOCK, values)
                except Exception:
                    await connection.invalidate()


@asynccontextmanager
async def _transaction_lock(
    database: Database, values: dict[str, str], *, wait: bool
) -> AsyncIterator[bool]:
    # Whoever waits does so outside: a transaction that stays open takes a connection of the
    # pooler's, and the build of an index, under the lock, would wait for it in turn.
    while True:
        async with database.transaction() as holder:
            is_ours = await _try(holder, TRY_LOCK_IN_TRANSACTION, values)
            if is_ours or not wait:
                with translated_errors():
                    # Last, for PostgreSQL keeps the snapshot of a SELECT until the next statement,
                    # and the build of an index would wait for it.
                    await holder.execute(_WAIT_PATIENTLY)
                yield is_ours
                return
        await anyio.sleep(POLL_S)


async def _try(connection: AsyncConnection, statement: TextClause, values: dict[str, str]) -> bool:
    with translated_errors():
        return bool((await connection.execute(statement, values)).scalar_one())
