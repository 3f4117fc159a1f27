"""Upgrading all schemas of a database, several at a time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from llmemory.database.engines import run_in_transaction
from llmemory.errors import ConflictError, LLMemoryError, ValidationError
from llmemory.schema import migrate
from llmemory.settings import Settings, checked_schema

__all__ = ["SchemaUpgrade", "upgrade_schemas"]

LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True, slots=True)
class SchemaUpgrade:
    """What became of one schema.

    Attributes:
        schema: Its name.
        found: The revision it was at; None if it had no tables, or was not reached.
        revision: The revision it is at now.
        problem: Why it was not upgraded, or None.
        elapsed_s: Seconds that it took.
    """

    schema: str
    found: str | None = None
    revision: str | None = None
    problem: str | None = None
    elapsed_s: float = 0.0

    @property
    def status(self) -> str:
        """``failed``, ``upgraded``, or ``unchanged`` where there was nothing to do."""
        if self.problem is not None:
            return "failed"
        return "unchanged" if self.found == self.revision else "upgraded"


def upgrade_schemas(
    settings: Settings | None = None,
    *,
    schemas: Iterable[str] | None = None,
    revision: str = "head",
    processes: int = 4,
    lock_timeout_s: float | None = None,
    on_progress: Callable[[SchemaUpgrade], Any] | None = None,
) -> list[SchemaUpgrade]:
    """Upgrade many schemas, each in a transaction of its own.

    A schema that fails stays as it was, and the others go on. Whatever interrupted a run, the next
    one does what is left. It blocks, and starts processes, since Alembic can run one migration at a
    time in each: a script that calls it needs ``if __name__ == "__main__":``.

    Args:
        settings: Where the database is; those of the environment by default.
        schemas: Their names; all that hold tables of the library by default.
        revision: The revision to go to.
        processes: How many schemas are upgraded at once. With 1 no process is started.
        lock_timeout_s: Seconds to wait for a lock that others hold, after which the schema counts
            as failed; None waits for ever, and holds up those who come after.
        on_progress: Called after each schema.

    Returns:
        What became of each, in order of name.

    Raises:
        ValidationError: `processes` is less than 1.
        ConfigurationError: A name cannot be that of a schema, or the login was refused.
        StorageUnavailable: The server could not be reached to look for the schemas.
    """
    if processes < 1:
        raise ValidationError("processes must be at least 1.", field="processes")
    settings = Settings.from_env() if settings is None else settings
    if schemas is None:
        names = run_in_transaction(settings, migrate.schemas_of)
    else:
        names = sorted({checked_schema(name) for name in schemas})
    work = partial(_upgrade, settings, revision=revision, lock_timeout_s=lock_timeout_s)
    done: list[SchemaUpgrade] = []
    for result in _results(work, names, min(processes, len(names))):
        done.append(result)
        if on_progress is not None:
            on_progress(result)
    return sorted(done, key=lambda result: result.schema)


def _results(
    work: Callable[[str], SchemaUpgrade], schemas: list[str], processes: int
) -> Iterator[SchemaUpgrade]:
    if processes <= 1:
        yield from map(work, schemas)
        return
    # Forking would copy locks and sockets of this process's threads.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    )
    try:
        started = {pool.submit(work, schema): schema for schema in schemas}
        for future in as_completed(started):
            yield _result(future, started[future])
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[SchemaUpgrade], schema: str) -> SchemaUpgrade:
    try:
        return future.result()
    except BrokenProcessPool:
        return SchemaUpgrade(schema, problem="A process that upgraded schemas ended. Run it again.")


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole group: this process ends when the schema at hand is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _upgrade(
    settings: Settings, schema: str, *, revision: str, lock_timeout_s: float | None
) -> SchemaUpgrade:
    started = time.monotonic()
    found = reached = problem = None
    try:
        found, reached = run_in_transaction(
            settings, _upgraded, schema, revision=revision, lock_timeout_s=lock_timeout_s
        )
    except ConflictError as error:
        problem = str(error)
        if error.sqlstate == LOCK_NOT_AVAILABLE:
            limit = "lock_timeout" if lock_timeout_s is None else f"{lock_timeout_s:g} s"
            problem = f"Others held a lock on it for more than {limit}. Run it again."
    except LLMemoryError as error:
        problem = str(error)
    return SchemaUpgrade(schema, found, reached, problem, time.monotonic() - started)


def _upgraded(
    connection: Connection, schema: str, *, revision: str, lock_timeout_s: float | None
) -> tuple[str | None, str | None]:
    found = migrate.revision_of(connection, schema)
    if found != migrate.HEAD or revision not in {"head", found}:
        migrate.upgrade(connection, schema, revision, lock_timeout_s=lock_timeout_s)
    return found, migrate.revision_of(connection, schema)
