"""Doing several things at once, with errors that look as if they had been done one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

__all__ = ["for_each", "task_group"]

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Give a task group that raises the first error of its tasks as it is, in no group."""
    error: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:
        task = asyncio.current_task()
        error = asyncio.CancelledError() if task and task.cancelling() else _first(errors)
    # Not raised inside of `except`: error and group would hold each other, and their frames.
    if error is not None:
        raise error


async def for_each(
    items: Iterable[T] | AsyncIterator[T], work: Callable[[T], Awaitable[None]], *, at_once: int
) -> None:
    """Call `work` for each of `items`, for `at_once` of them at the same time.

    No item is taken before there is room for it. The first error ends all.
    """
    turn = anyio.Lock()
    iterator = None if isinstance(items, AsyncIterator) else iter(items)

    async def work_on() -> None:
        if iterator is not None:
            for item in iterator:
                await work(item)
            return
        assert isinstance(items, AsyncIterator)
        while True:
            # An asynchronous generator cannot be asked twice at once.
            async with turn:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            await work(item)

    if at_once == 1:
        await work_on()
        return
    async with task_group() as group:
        for _ in range(at_once):
            group.start_soon(work_on)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
