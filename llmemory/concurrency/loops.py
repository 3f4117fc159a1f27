"""Resources that live in an event loop: one per loop, closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

import anyio

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Holds one resource per event loop, made at its first use there and closed with the loop.

    It may be used in several loops, one after the other or in several threads at once. A loop
    that is closed without ``shutdown_asyncgens``, which ``asyncio.run`` calls, leaves its resource
    to garbage collection. Once nobody refers to this object, each loop closes its own.

    Args:
        make: Makes the resource of the running loop. It should not refer to what holds this
            object: the members of a reference cycle are collected before they can be closed.
        close: Closes it; runs in the loop of the resource.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        self._make = make
        self._close = close
        self._held: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None]]] = {}

    async def get(self) -> T:
        """Return the resource of the running loop."""
        loop = asyncio.get_running_loop()
        if (held := self._held.get(loop)) is not None:
            return held[0]
        for other in list(self._held):
            if other.is_closed():
                self._held.pop(other, None)
        resource = self._make()
        keeper = _keep(resource, self._close)
        self._held[loop] = (resource, keeper)
        # It does not suspend: no other task can meet a resource without its keeper.
        await anext(keeper)
        return resource

    def resources(self) -> list[T]:
        """Return what is held now, of all loops."""
        return [resource for resource, _ in list(self._held.values())]

    async def aclose(self) -> None:
        """Close the running loop's resource now, and have other open loops close theirs."""
        held, self._held = self._held, {}
        mine = held.pop(asyncio.get_running_loop(), None)
        # A loop closes an async generator of its own that nobody refers to any more.
        held.clear()
        if mine is not None:
            await mine[1].aclose()


async def _keep(resource: T, close: Callable[[T], Awaitable[object]]) -> AsyncGenerator[None]:
    # asyncio.run closes a loop's unfinished async generators before the loop: the one moment to
    # close what can be reached neither earlier nor later.
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await close(resource)
