"""A read replica: asked first, and left alone for a while where it does not answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from llmemory.database.engines import Database
from llmemory.errors import ConflictError, SchemaMissing, StorageUnavailable
from llmemory.settings import Settings

__all__ = ["Replica", "replica_of"]

T = TypeVar("T")

PAUSE_S = 5.0


def replica_of(settings: Settings, engine: AsyncEngine | None, *, schema: str) -> Replica | None:
    """Return the replica that an engine or the settings name, or None.

    Raises:
        ConfigurationError: The engine is none for PostgreSQL.
    """
    if engine is None and settings.replica_url is None:
        return None
    there = settings.model_copy(update={"database_url": settings.replica_url})
    return Replica(Database(there, engine=engine, schema=schema))


class Replica:
    """Answers what need not be of this moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_away_until = 0.0

    async def ask_first(self, ask: Callable[[Database], Awaitable[T]], otherwise: Database) -> T:
        """Return what `ask` returns of the replica, or of `otherwise` where that fails.

        A replica may be away, as far behind as to have no tables yet, or break off a query that
        stands in the way of what it has to replay.
        """
        if time.monotonic() >= self._is_away_until:
            try:
                return await ask(self._database)
            except StorageUnavailable:
                # Many a connection attempt ends only with its time-out.
                self._is_away_until = time.monotonic() + PAUSE_S
            except (ConflictError, SchemaMissing):
                pass
        return await ask(otherwise)

    async def close(self) -> None:
        """Close the connections that were opened here."""
        await self._database.close()
