"""Dropping the vectors of a model: what is done is in the tables only, so that it can go on."""

from __future__ import annotations

from llmemory.database.driver_errors import translated_errors
from llmemory.errors import ConflictError, ValidationError
from llmemory.reembedding.chunk_walk import ChunkWalk, Page
from llmemory.spaces import StoredSpace
from llmemory.statements import reembedding as sql
from llmemory.statements import spaces as spaces_sql

__all__ = ["SpaceRemoval"]


class SpaceRemoval(ChunkWalk):
    """Deletes the vectors of spaces that are not the default."""

    async def drop(self, space: StoredSpace) -> int:
        """Delete the vectors, jobs and indexes of a space; return how many vectors.

        Broken off and called again, it goes on.
        """
        chosen = {"chosen": space.space_id}
        async with self._database.connect() as connection:
            with translated_errors():
                marked = await connection.execute(spaces_sql.mark_dropped(self._tables), chosen)
            if not marked.rowcount:
                raise ValidationError(
                    "This space is the default, which searches need; reembed with another model "
                    "first.",
                    field="space_id",
                )
            await self._wait_for(connection, await self._writers(connection), str(space))
            await self._maintenance.drop_indexes(space.space_id)
            with translated_errors():
                wanted = {"space": space.space_id}
                await connection.execute(sql.delete_jobs_of_space(self._tables), wanted)
                if (
                    await connection.execute(sql.has_vectors(self._tables), wanted)
                ).first() is None:
                    return 0
            deleted = 0
            async for page in self._pages(connection):
                deleted += await self._delete(space, page)
                self._report("dropping vectors", str(space), page.end, page.total)
            return deleted

    async def _delete(self, space: StoredSpace, page: Page) -> int:
        async with self._by_keys() as connection:
            held = await connection.execute(
                spaces_sql.hold_state(self._tables), {"chosen": space.space_id}
            )
            if held.scalar_one() != "dropped":
                raise ConflictError(f"The vectors of {space} are being made anew; none is dropped.")
            result = await connection.execute(
                sql.delete_vectors(self._tables), self._in_space(page, space)
            )
            return result.rowcount
