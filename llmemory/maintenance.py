"""Upkeep that searches gain from: planner statistics, counts of words, HNSW indexes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import anyio
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.database.session_lock import session_lock
from llmemory.errors import ConfigurationError, LLMemoryError
from llmemory.models import Tables
from llmemory.schema.row_level_security import check_sees_all
from llmemory.search.vector_indexes import stored_indexes
from llmemory.settings import Settings
from llmemory.spaces import StoredSpace, stored_spaces
from llmemory.statements import maintenance as sql
from llmemory.statements import vector_indexes as indexes_sql
from llmemory.types import DocumentAddResult, MaintenanceProgress, MaintenanceResult

__all__ = ["Maintenance", "analyze_after_bulk"]

OnProgress: TypeAlias = Callable[[MaintenanceProgress], Any]

SAMPLED_CHUNKS = 50_000
"""Chunks that an owner's words are counted in, about: more make the counts little better."""

BULK_CHUNKS = 1_000
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An owner's vectors of a space that an index is for."""

    owner_id: str
    space_id: int
    vectors: int
    dimensions: int
    holds: indexes_sql.Held

    @property
    def name(self) -> str:
        return indexes_sql.index_name(self.owner_id, self.space_id, self.holds)


class Maintenance:
    """One run of upkeep on a schema, on a connection of its own."""

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
        self._on_progress = on_progress

    async def run(self) -> MaintenanceResult:
        """Do what is due, or nothing if another run is at work on this schema.

        Raises:
            ConfigurationError: The role does not own the tables, or does not see all rows.
        """
        async with self._database.connect() as connection:
            await self._check_owner(connection)
            async with self._alone(connection) as is_alone:
                if not is_alone:
                    return MaintenanceResult(is_busy=True)
                analyzed = await self._analyze(connection)
                counted = await self._count_terms(connection)
                built, dropped, left_out = await self._tend_indexes(connection)
                return MaintenanceResult(
                    tables_analyzed=analyzed,
                    owners_counted=counted,
                    indexes_built=built,
                    indexes_dropped=dropped,
                    owners_left_out=left_out,
                )

    async def prepare_space(self, space_id: int) -> int:
        """Make a space that has been filled fast to search; return how many indexes were built.

        It waits for another run to end.
        """
        async with (
            self._database.connect() as connection,
            self._alone(connection, wait=True),
        ):
            with translated_errors():
                await connection.execute(sql.analyze(self._tables.embeddings))
            built, _, _ = await self._tend_indexes(connection, only=space_id)
            return built

    async def drop_indexes(self, space_id: int) -> None:
        """Drop the indexes of a space. It waits for another run to end."""
        async with (
            self._database.connect() as connection,
            self._alone(connection, wait=True),
        ):
            for index in await stored_indexes(connection, self._tables):
                if indexes_sql.space_of(index.name) == space_id:
                    await self._drop(connection, index.name)

    @asynccontextmanager
    async def _alone(
        self, connection: AsyncConnection, *, wait: bool = False
    ) -> AsyncIterator[bool]:
        """Keep other runs out within the block, or tell it that one is at work.

        Behind a pooler the server goes on, without the lock, with the build of a run that was
        broken off.
        """
        name = f"llmemory maintenance {self._tables.schema}"
        async with session_lock(self._database, connection, name, wait=wait) as is_ours:
            if is_ours and not self._database.has_sessions:
                # Nobody in this process hears of its end.
                while (is_left := await self._progress(connection) is not None) and wait:  # noqa: ASYNC110
                    await anyio.sleep(POLL_S)
                is_ours = not is_left
            yield is_ours

    async def _progress(self, connection: AsyncConnection) -> Row[Any] | None:
        """Return how far a build on the embeddings is, or None if there is none."""
        values = {"schema_name": self._tables.schema, "table_name": self._tables.embeddings.name}
        with translated_errors():
            return (await connection.execute(sql.BUILD_PROGRESS, values)).first()

    async def check_owner(self) -> None:
        """Check that the role may do all this.

        Raises:
            ConfigurationError: The role does not own the tables, or does not see all rows.
        """
        async with self._database.connect() as connection:
            await self._check_owner(connection)

    async def _check_owner(self, connection: AsyncConnection) -> None:
        names = [table.name for table in self._planned_tables()]
        values = {"schema_name": self._tables.schema, "table_names": names}
        with translated_errors():
            owned = (await connection.execute(sql.OWNED_TABLES, values)).scalars().all()
        if len(owned) != len(names):
            raise ConfigurationError(
                f'Maintaining schema "{self._tables.schema}" needs the role that owns its tables. '
                "Connect as the role that migrates, or be granted it."
            )
        # Without rows in sight, all indexes would look outgrown.
        with translated_errors():
            await connection.run_sync(check_sees_all, self._tables.schema)

    async def _analyze(self, connection: AsyncConnection) -> list[str]:
        tables = self._planned_tables()
        with translated_errors():
            known = await _planner_rows(connection, tables)
            due = []
            for table in tables:
                rows = (await connection.execute(sql.count_rows(table))).scalar_one()
                planned, has_statistics = known[table.name]
                is_far_off = planned < rows / 2 or planned > max(rows, 1) * 2
                if is_far_off or (rows and not has_statistics):
                    due.append(table)
            for number, table in enumerate(due):
                self._report("analyzing", table.name, number, len(due))
                await connection.execute(sql.analyze(table))
        return [table.name for table in due]

    async def _count_terms(self, connection: AsyncConnection) -> int:
        minimum = self._settings.word_count_chunks
        with translated_errors():
            result = await connection.execute(
                sql.chunks_of_large_owners(self._tables), {"least": -(-minimum // 2)}
            )
            found = {row.owner_id: row.chunks for row in result}
            result = await connection.execute(sql.counted_owners(self._tables))
            counted = set(result.scalars())
            for owner_id in counted - found.keys():
                await connection.execute(sql.forget_terms(self._tables), {"owner": owner_id})
            due = [
                owner_id
                for owner_id, chunks in found.items()
                if chunks >= minimum or owner_id in counted
            ]
            for number, owner_id in enumerate(due):
                self._report("counting words", owner_id, number, len(due))
                await connection.execute(
                    sql.count_terms(self._tables),
                    {
                        "owner": owner_id,
                        "all_chunks": found[owner_id],
                        "one_in": max(1, found[owner_id] // SAMPLED_CHUNKS),
                        "minimum": self._settings.word_count_minimum,
                        "now": datetime.now(UTC),
                    },
                )
        return len(due)

    async def _tend_indexes(
        self, connection: AsyncConnection, only: int | None = None
    ) -> tuple[int, int, int]:
        """Build and drop, in all spaces but those that are being filled, or in one of these."""
        spaces = await stored_spaces(connection, self._tables)
        # Filling a space is many times slower with its indexes: they come last.
        filling = {space.space_id for space in spaces if space.state == "filling"}

        def is_tended(space_id: int) -> bool:
            return space_id not in filling if only is None else space_id == only

        stored = [
            index
            for index in await stored_indexes(connection, self._tables)
            if is_tended(indexes_sql.space_of(index.name))
        ]
        valid = {index.name for index in stored if index.is_valid}
        eligible = await self._eligible(
            connection, valid, [space for space in spaces if is_tended(space.space_id)]
        )
        most = self._settings.hnsw_max_indexes
        wanted = [index for group in eligible for index in group[:most]]
        names = {index.name for index in wanted}
        # What a run that was broken off has left behind takes space and time at every write.
        broken = [index.name for index in stored if not index.is_valid]
        for name in broken:
            await self._drop(connection, name)
        missing = [index for index in wanted if index.name not in valid]
        for number, index in enumerate(missing):
            await self._build(connection, index, number, len(missing))
        outgrown = sorted(valid - names)
        for name in outgrown:
            await self._drop(connection, name)
        left_out = sum(map(len, eligible)) - len(wanted)
        return len(missing), len(broken) + len(outgrown), left_out

    async def _eligible(
        self, connection: AsyncConnection, valid: set[str], spaces: Sequence[StoredSpace]
    ) -> list[list[_Wanted]]:
        """Return for each space whose vectors are to have an index, the largest first."""
        minimum = self._settings.hnsw_owner_vectors
        dimensions = {
            space.space_id: space.dimensions for space in spaces if space.state != "dropped"
        }
        with translated_errors():
            result = await connection.execute(
                sql.vectors_of_large_owners(self._tables), {"least": -(-minimum // 4)}
            )
        groups: defaultdict[int, list[_Wanted]] = defaultdict(list)
        for row in result:
            if row.space_id in dimensions:
                index = self._wanted(row, dimensions)
                if index.vectors >= minimum or index.name in valid:
                    groups[row.space_id].append(index)
        return list(groups.values())

    def _wanted(self, row: Row[Any], dimensions: dict[int, int]) -> _Wanted:
        length = dimensions[row.space_id]
        is_reduced = self._settings.hnsw_signs or length > indexes_sql.HALFVEC_DIMENSIONS
        holds: indexes_sql.Held = "signs" if is_reduced else "halves"
        return _Wanted(row.owner_id, row.space_id, row.vectors, length, holds)

    async def _build(
        self, connection: AsyncConnection, index: _Wanted, number: int, total: int
    ) -> None:
        statement = indexes_sql.create_index(
            self._tables,
            index.owner_id,
            index.space_id,
            dimensions=index.dimensions,
            holds=index.holds,
            m=self._settings.hnsw_m,
            ef_construction=self._settings.hnsw_ef_construction,
        )
        self._report("building an index", index.owner_id, number, total)
        with translated_errors():
            async with self._watched(index, number, total):
                await connection.execute(statement)

    async def _drop(self, connection: AsyncConnection, name: str) -> None:
        self._report("dropping an index", name, 0, 1)
        with translated_errors():
            await connection.execute(indexes_sql.drop_index(self._tables, name))

    @asynccontextmanager
    async def _watched(self, index: _Wanted, number: int, total: int) -> AsyncIterator[None]:
        """Report how far a build is, as PostgreSQL tells on another connection."""
        if self._on_progress is None:
            yield
            return

        async def watch() -> None:
            while True:
                await anyio.sleep(POLL_S)
                with suppress(LLMemoryError):
                    async with self._database.connect() as connection:
                        row = await self._progress(connection)
                    if row is not None:
                        done = number + _share(row)
                        self._report("building an index", index.owner_id, done, total)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    def _planned_tables(self) -> list[Any]:
        return [self._tables.documents, self._tables.chunks, self._tables.embeddings]

    def _report(self, step: str, subject: str, done: float, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(
                MaintenanceProgress(step=step, subject=subject, done=done, total=total)
            )


async def analyze_after_bulk(
    database: Database, tables: Tables, results: Sequence[DocumentAddResult]
) -> None:
    """Tell the planner of rows that a bulk call has added, unless it knows of them.

    Searches right after it would read the owner's rows where an index is better. Whatever stands
    in the way, autovacuum will do it later.
    """
    added = {
        tables.documents: sum(result.status == "created" for result in results),
        tables.chunks: sum(result.chunks_created for result in results),
        tables.embeddings: sum(result.embeddings_created for result in results),
    }
    if added[tables.chunks] < BULK_CHUNKS:
        return
    with suppress(LLMemoryError):
        async with database.connect() as connection:
            with translated_errors():
                known = await _planner_rows(connection, list(added))
                if all(known[table.name][0] >= rows / 2 for table, rows in added.items()):
                    return
                for table in added:
                    await connection.execute(sql.analyze(table))


async def _planner_rows(
    connection: AsyncConnection, tables: Sequence[Any]
) -> dict[str, tuple[float, bool]]:
    values = {"schema_name": tables[0].schema, "table_names": [table.name for table in tables]}
    result = await connection.execute(sql.PLANNER_ROWS, values)
    return {row.name: (row.rows, row.has_statistics) for row in result}


def _share(row: Row[Any]) -> float:
    """Return how much of a build is done, 0 to 1."""
    if row.tuples_total:
        return min(float(row.tuples_done / row.tuples_total), 1.0)
    if row.blocks_total:
        return min(float(row.blocks_done / row.blocks_total), 1.0)
    return 0.0
