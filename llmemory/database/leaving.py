"""Entering and leaving what holds a connection, so that no cancellation loses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool

__all__ = ["GivenBack", "left_in_peace"]

T = TypeVar("T")


async def _keep(value: object) -> None:
    """Do nothing."""


@asynccontextmanager
async def left_in_peace(
    manager: AbstractAsyncContextManager[T], release: Callable[[T], Awaitable[None]] = _keep
) -> AsyncIterator[T]:
    """Enter `manager`, and leave it even within a cancelled scope.

    Each await there would be cancelled anew: no rollback, and a connection lost to the pool. What
    arrives after its caller was cancelled goes to `release` first.
    """
    entering = asyncio.ensure_future(manager.__aenter__())
    try:
        value = await asyncio.shield(entering)
    except asyncio.CancelledError:
        # Cancelled half-way, a connection would be lost: let it arrive, then give it back.
        entering.add_done_callback(partial(_leave_later, manager, release))
        raise
    try:
        yield value
    except BaseException as error:
        await _leave_after(error, manager)
        raise
    with anyio.CancelScope(shield=True):
        await manager.__aexit__(None, None, None)


class GivenBack(AbstractAsyncContextManager[AsyncConnection]):
    """Gives a connection back that was taken at once: in autocommit there is nothing to roll back.

    Args:
        connection: What the block gets.
        pool: Where it comes from.
    """

    def __init__(self, connection: AsyncConnection, pool: QueuePool) -> None:
        self._connection = connection
        self._pool = pool

    async def __aenter__(self) -> AsyncConnection:
        return self._connection

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None:
            await _leave_after(error, self._connection)
        elif self._pool.overflow() > 0:
            await self._connection.close()
        else:
            # A pool that has room for it does not wait: no need of the greenlet that waits.
            self._connection.sync_connection.close()  # type: ignore[union-attr]


async def _leave_after(error: BaseException, manager: AbstractAsyncContextManager[Any]) -> None:
    # A rollback on a broken connection must not take the place of what broke it.
    with anyio.CancelScope(shield=True), suppress(Exception):
        await manager.__aexit__(type(error), error, error.__traceback__)


_leaving: set[asyncio.Future[Any]] = set()


def _leave_later(
    manager: AbstractAsyncContextManager[T],
    release: Callable[[T], Awaitable[None]],
    entered: asyncio.Future[T],
) -> None:
    if entered.cancelled() or entered.exception() is not None:
        return

    async def leave() -> None:
        await release(entered.result())
        await manager.__aexit__(None, None, None)

    leaving = asyncio.ensure_future(leave())
    _leaving.add(leaving)
    leaving.add_done_callback(_leaving.discard)
