"""Going through the chunks of all owners of a schema, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.maintenance import Maintenance, OnProgress
from llmemory.models import Tables, quoted_identifier
from llmemory.settings import Settings
from llmemory.spaces import Space
from llmemory.statements import reembedding as sql
from llmemory.statements import spaces as spaces_sql
from llmemory.types import MaintenanceProgress

__all__ = ["ChunkWalk", "Key", "Page"]

PAGE_CHUNKS = 1_000
POLL_S = 0.1


class Key(NamedTuple):
    """Where a chunk stands among those of all owners."""

    owner_id: str
    chunk_id: UUID


_FIRST = Key("", UUID(int=0))


@dataclass(frozen=True, slots=True)
class Page:
    """The chunks between two keys, the second one included.

    Attributes:
        done: How many chunks come before them.
        chunks: How many they are.
        total: How many there are, about.
    """

    after: Key
    last: Key
    done: int
    chunks: int
    total: int

    @property
    def end(self) -> int:
        """How many chunks there are up to the end of the page."""
        return self.done + self.chunks


class ChunkWalk:
    """What goes through the chunks of all owners on a schema."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        settings: Settings,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._database = database
        self._tables = tables
        self._settings = settings
        self._maintenance = Maintenance(database, tables, settings, on_progress)
        self._on_progress = on_progress

    async def check_owner(self) -> None:
        """Check that the role may build and drop indexes, before anything else is done.

        Raises:
            ConfigurationError: It does not own the tables.
        """
        await self._maintenance.check_owner()

    async def _pages(self, connection: AsyncConnection) -> AsyncGenerator[Page]:
        """Yield all chunks page by page."""
        with translated_errors():
            counted = await connection.execute(spaces_sql.count_chunks(self._tables))
        total = counted.scalar_one()
        done, after = 0, _FIRST
        while True:
            values = {
                "after_owner": after.owner_id,
                "after_chunk": after.chunk_id,
                "limit": PAGE_CHUNKS,
            }
            with translated_errors():
                end = (await connection.execute(sql.page_end(self._tables), values)).first()
            if end is None:
                return
            last = Key(end.owner_id, end.chunk_id)
            page = Page(after, last, done, end.chunks, max(total, done + end.chunks))
            yield page
            done, after = page.end, last

    async def _writers(self, connection: AsyncConnection) -> set[str]:
        """Return the transactions that have written chunks and are not over."""
        table = f"{quoted_identifier(self._tables.schema)}.{self._tables.chunks.name}"
        with translated_errors():
            found = await connection.execute(sql.WRITERS, {"locked_table": table})
            return set(found.scalars())

    async def _wait_for(self, connection: AsyncConnection, writers: set[str], what: str) -> None:
        total = len(writers)
        while writers := writers & await self._writers(connection):
            self._report("waiting for transactions", what, total - len(writers), total)
            await anyio.sleep(POLL_S)

    @asynccontextmanager
    async def _by_keys(self) -> AsyncIterator[AsyncConnection]:
        """Give a transaction in which a page is found by its keys."""
        async with self._database.transaction() as connection:
            for setting in sql.BY_KEYS:
                await connection.execute(setting)
            yield connection

    def _in_space(self, page: Page, space: Space) -> dict[str, Any]:
        return {
            "after_owner": page.after.owner_id,
            "after_chunk": page.after.chunk_id,
            "last_owner": page.last.owner_id,
            "last_chunk": page.last.chunk_id,
            "space": space.space_id,
        }

    def _report(self, step: str, subject: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(
                MaintenanceProgress(step=step, subject=subject, done=done, total=total)
            )
