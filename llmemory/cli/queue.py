"""Commands on the queue of documents that wait for their vectors: worker, jobs."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cyclopts import App

from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import output, print_error, print_jobs, print_json, print_remark, remarks
from llmemory.errors import EmbeddingError
from llmemory.types import JobState, QueueProgress

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["jobs", "worker"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

jobs = App(name="jobs", help="Look at the queue of documents for their vectors, and requeue them.")


def worker(
    *,
    owner: str | None = None,
    once: bool = False,
    grace_s: float = 5.0,
    settings: GivenSettings,
) -> int:
    """Make the vectors that adding has left for later, as they come, until SIGTERM or Ctrl-C.

    Any number of workers may run at once, on any number of machines. At the first signal a worker
    takes no more work and finishes what it is at, or gives it back after a while; at the second it
    ends at once, and others do that work when its lease has run out.

    Args:
        owner: Only this owner's documents; without it all owners have their turns.
        once: Do what is due now, then end; exit code 1 if documents were not finished.
        grace_s: Seconds after the first signal until unfinished work is given back.
        settings: What the global options and the environment say.
    """
    finished = 0

    def count(progress: QueueProgress) -> None:
        nonlocal finished
        finished += progress.finished

    async def work(memory: AsyncMemory) -> None:
        is_stopping = False
        loop = asyncio.get_running_loop()

        def stop() -> None:
            nonlocal is_stopping
            is_stopping = True
            for number in SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            print_remark("Stopping. A second signal ends at once.")
            loop.call_later(grace_s, working.cancel)

        await memory.initialize()
        working = asyncio.ensure_future(
            memory.run_worker(owner, should_stop=lambda: is_stopping, on_progress=count)
        )
        # Windows has no such handlers; there Ctrl-C cancels.
        with suppress(NotImplementedError):
            for number in SIGNALS:
                loop.add_signal_handler(number, stop)
        print_remark("Waiting for documents to embed. SIGTERM or Ctrl-C ends it.")
        try:
            await working
        except asyncio.CancelledError:
            if not is_stopping:
                raise

    if once:
        return _work_once(settings, owner)
    with _logged():
        with_memory(settings, work)
    output.print(f"{finished} documents finished")
    return 0


def _work_once(settings: GivenSettings, owner: str | None) -> int:
    try:
        finished = with_memory(settings, lambda memory: memory.process_pending_embeddings(owner))
    except EmbeddingError as error:
        print_error(f"{error} `llmemory jobs list` shows what is left.")
        return 1
    output.print(f"{finished} documents finished")
    return 0


@contextmanager
def _logged() -> Iterator[None]:
    """Print what the library logs: a worker goes on where another command would fail."""

    class Remarks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print_remark(f"{record.levelname.lower()}: {record.getMessage()}")

    logger, handler = logging.getLogger("llmemory"), Remarks(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@jobs.command(name="list")
def list_jobs(
    *,
    owner: str | None = None,
    state: JobState | None = None,
    limit: int = 20,
    offset: int = 0,
    json: bool = False,
    settings: GivenSettings,
) -> None:
    """List the documents that wait for their vectors or were given up, the oldest first.

    Args:
        owner: Only this owner's documents.
        state: Only those that wait, that a worker has, or that were given up.
        limit: Documents to list.
        offset: Documents to skip.
        json: Print them as JSON.
        settings: What the global options and the environment say.
    """
    found = with_memory(
        settings,
        lambda memory: memory.list_jobs(owner, state=state, limit=limit, offset=offset),
    )
    if json:
        print_json(found)
    elif found:
        print_jobs(found)
    else:
        remarks.print("No documents.")


@jobs.command
def requeue(
    document_ids: list[str] | None = None,
    /,
    *,
    owner: str | None = None,
    settings: GivenSettings,
) -> None:
    """Have documents that were given up tried again, with all their attempts.

    Args:
        document_ids: Only these, as `llmemory jobs list` prints them; without them all.
        owner: Only this owner's documents.
        settings: What the global options and the environment say.
    """
    count = with_memory(
        settings, lambda memory: memory.requeue_jobs(owner, document_ids=document_ids)
    )
    output.print(f"{count} requeued")
