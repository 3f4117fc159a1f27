"""Advisory locks of a session: of several runs of something long, one works.

They save work twice done. Nothing is wrong without them, as behind a pooler that shares sessions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.drivers import translated_errors
from llmemory.statements.maintenance import TRY_LOCK, UNLOCK

__all__ = ["session_lock"]

POLL_S = 0.2

# What takes long must neither be cut off nor leave anything set for the connection's next user.
_PREPARE = text("SELECT set_config('statement_timeout', '0', false)")
_RESTORE = text("RESET statement_timeout")


@asynccontextmanager
async def session_lock(
    connection: AsyncConnection, name: str, *, wait: bool = False
) -> AsyncIterator[bool]:
    """Hold the lock `name` within the block, where statements may take as long as they take.

    Args:
        connection: In autocommit; the lock ends with its session.
        name: What is locked.
        wait: Whether to wait until it is free. Else the block is told that it is not.
    """
    values = {"lock_name": name}
    with translated_errors():
        while not (is_ours := (await connection.execute(TRY_LOCK, values)).scalar_one()):
            if not wait:
                break
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
