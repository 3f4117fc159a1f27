"""The worker: takes turns as long as there are due jobs, and waits for new ones."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from llmemory.database.engines import Database
from llmemory.errors import EmbedderMismatchError, LLMemoryError, ProviderUnavailable, StorageError
from llmemory.queue.notifications import can_listen, listen
from llmemory.queue.processing import Queue, Turn
from llmemory.settings import Settings
from llmemory.statements.queue import CHANNEL
from llmemory.types import QueueProgress

__all__ = ["Worker"]

_logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
# A signal's handler or another thread can only be asked, not waited for.
ASKING_S = 0.1


class Worker:
    """Works on a queue until it is told to stop.

    Args:
        queue: What to work on.
        renew: Returns the same queue, or another one once the memory has another model.
        database: Where to listen for hints.
        schema: Whose hints.
        settings: How often to look, and whether to listen.
        should_stop: Asked before each turn and while waiting.
        on_progress: Called after each turn.
    """

    def __init__(
        self,
        queue: Queue,
        renew: Callable[[Queue], Awaitable[Queue]],
        database: Database,
        schema: str,
        settings: Settings,
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[QueueProgress], Any] | None = None,
    ) -> None:
        self._queue = queue
        self._renew = renew
        self._database = database
        self._schema = schema
        self._settings = settings
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._hint = asyncio.Event()

    async def run(self, owner_id: str | None = None) -> int:
        """Work until told to stop, or cancelled; return how many documents were finished.

        What the database or the embedder fail at is logged and tried again later.

        Args:
            owner_id: Only this owner's documents; None takes all owners in turn.

        Raises:
            LLMemoryError: What trying again does not mend: the memory was closed, the login is
                refused, the tables are gone, the vectors of its embedder were dropped.
        """
        listening = asyncio.create_task(self._listen()) if self._settings.job_notify else None
        try:
            return await self._work(owner_id)
        finally:
            if listening is not None:
                listening.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([listening])

    async def _work(self, owner_id: str | None) -> int:
        finished = setbacks = 0
        while not self._is_to_stop():
            self._hint.clear()
            queue = self._queue = await self._renew(self._queue)
            try:
                turn = await queue.take_turn(owner_id)
            except EmbedderMismatchError:
                # The model was changed in the middle of a turn, and the former vectors dropped.
                if await self._renew(queue) is queue:
                    raise
                continue
            except StorageError as error:
                setbacks += 1
                await self._pause(setbacks, error)
                continue
            if turn is None:
                setbacks = 0
                await self._wait(self._settings.job_poll_s * random.uniform(0.8, 1.2), or_hint=True)
                continue
            finished += len(turn.finished)
            self._report(turn)
            setbacks = setbacks + 1 if turn.is_setback else 0
            if turn.is_setback:
                await self._pause(setbacks, turn.error)
        return finished

    def _report(self, turn: Turn) -> None:
        problem = next(iter(turn.failures.values()), None)
        if problem is not None:
            _logger.warning("%d documents were not finished. %s", len(turn.failures), problem)
        if self._on_progress is not None:
            self._on_progress(
                QueueProgress(
                    owner_id=turn.owner_id,
                    finished=len(turn.finished),
                    embedded=turn.written,
                    failed=len(turn.failures),
                    problem=problem,
                )
            )

    async def _pause(self, setbacks: int, error: LLMemoryError | None) -> None:
        """Wait the longer the more turns in a row came to nothing."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(setbacks - 1, 10))
        pause_s *= random.uniform(0.5, 1.0)
        if isinstance(error, ProviderUnavailable) and error.retry_after_s is not None:
            pause_s = max(pause_s, min(LONGEST_PAUSE_S, error.retry_after_s))
        if isinstance(error, StorageError):
            _logger.warning("%s The worker tries again in %.1f s.", error, pause_s)
        await self._wait(pause_s)

    async def _wait(self, seconds: float, *, or_hint: bool = False) -> None:
        until = time.monotonic() + seconds
        while not self._is_to_stop() and (left_s := until - time.monotonic()) > 0:
            step_s = left_s if self._should_stop is None else min(left_s, ASKING_S)
            if not or_hint:
                await anyio.sleep(step_s)
                continue
            with anyio.move_on_after(step_s):
                await self._hint.wait()
                return

    def _is_to_stop(self) -> bool:
        return self._should_stop is not None and self._should_stop()

    async def _listen(self) -> None:
        """Listen for hints; without them the worker still looks for itself."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                if not await can_listen(self._database):
                    return
                await listen(self._database, CHANNEL, self._schema, self._hint.set)
            except LLMemoryError as error:
                _logger.debug("Not listening for new jobs: %s", error)
            failures = 0 if time.monotonic() - started > LONGEST_PAUSE_S else failures + 1
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 10))
            await anyio.sleep(pause_s * random.uniform(0.5, 1.0))
