"""Settings of PostgreSQL that hold for one statement or transaction and are gone after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import lru_cache
from typing import Any

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.constructs import quoted_literal
from llmemory.database.driver_errors import translated_errors
from llmemory.database.drivers import pooled
from llmemory.statements.row_level_security import OWNER_SETTING

__all__ = ["OWNER_SETTING", "local_settings", "owner_of", "set_owner"]

_OWNER = text(f"SELECT current_setting('{OWNER_SETTING}', true)")


def local_settings(
    connection: AsyncConnection, values: Mapping[str, str | int]
) -> AbstractAsyncContextManager[None]:
    """Have `values` in force within the block, by SET LOCAL.

    A connection in autocommit gets a transaction for the block: one round trip before it and one
    after it. In a caller's transaction a savepoint takes its place, which is rolled back: that is
    what brings the former values back, so the block must not write.

    Args:
        connection: Where the statement will run.
        values: Settings by name.
    """
    return _in_force(connection, values) if values else nullcontext()


@asynccontextmanager
async def _in_force(
    connection: AsyncConnection, values: Mapping[str, str | int]
) -> AsyncIterator[None]:
    lent = await pooled(connection)
    driver: Any = lent.driver_connection
    assignments = _assignments(tuple(values.items()))
    if not lent.dbapi_connection.autocommit:  # type: ignore[union-attr]
        with translated_errors():
            savepoint = await connection.begin_nested()
            try:
                await _run(driver, assignments)
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await savepoint.rollback()
        return
    try:
        with translated_errors():
            await _run(driver, f"BEGIN; {assignments}")
            yield
            await _run(driver, "COMMIT")
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _end(connection, driver)
        raise


async def owner_of(connection: AsyncConnection) -> str | None:
    """Return whose rows a transaction may see, and begin it: asyncpg's begins with a statement."""
    return (await connection.execute(_OWNER)).scalar()


async def set_owner(connection: AsyncConnection, owner_id: str | None) -> None:
    """Let a transaction that has begun see an owner's rows until its end; None takes none."""
    lent = await pooled(connection)
    with translated_errors():
        await _run(lent.driver_connection, _assignment(OWNER_SETTING, owner_id or ""))


@lru_cache(maxsize=256)
def _assignments(values: tuple[tuple[str, str | int], ...]) -> str:
    return "; ".join(_assignment(name, value) for name, value in values)


def _assignment(name: str, value: str | int) -> str:
    # SET takes no parameters.
    return f"SET LOCAL {name} = {value if isinstance(value, int) else quoted_literal(value)}"


async def _end(connection: AsyncConnection, driver: Any) -> None:
    try:
        with anyio.fail_after(5):
            await _run(driver, "ROLLBACK")
    except Exception:
        # Nobody knows what is left set on it.
        await connection.invalidate()


async def _run(driver: Any, commands: str) -> None:
    """Send commands by the simple protocol: several in one round trip, none of them prepared."""
    if hasattr(driver, "cursor") and hasattr(driver, "pgconn"):
        await driver.execute(commands, prepare=False)
    else:
        await driver.execute(commands)
