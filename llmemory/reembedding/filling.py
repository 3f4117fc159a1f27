"""Changing the model: filling a second space, building its indexes, making it the default.

What is done is in the tables only. A run that was broken off is gone on with by the next.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any
from uuid import UUID

import anyio
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.concurrency.tasks import for_each
from llmemory.database import binary_copy
from llmemory.database.copying import copy_rows
from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.database.session_lock import session_lock
from llmemory.embedding.base import Embedder, concurrency_of
from llmemory.embedding.contexts import Contexts, PossibleTexts
from llmemory.embedding.partial import PartlyEmbedded, embed_all_but_refused
from llmemory.embedding.text import ChunkToEmbed
from llmemory.errors import ConflictError
from llmemory.maintenance import OnProgress
from llmemory.models import Tables
from llmemory.reembedding.chunk_walk import ChunkWalk, Key, Page
from llmemory.reembedding.refusals import Refusal, Refusals
from llmemory.settings import Settings
from llmemory.spaces import (
    FED,
    Space,
    StoredSpace,
    add_space,
    identity_of,
    open_space,
    stored_spaces,
)
from llmemory.statements import queue as queue_sql
from llmemory.statements import reembedding as sql
from llmemory.statements import spaces as spaces_sql
from llmemory.types import HalfVectors

__all__ = ["Filled", "Reembedding"]

ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Filled:
    """A space that is the default and has its vectors.

    Attributes:
        replaced: Number of the space that was the default before; None if it was the same.
        vectors: Vectors that were made.
        indexes: HNSW indexes that were built.
        refused: Documents that have a job instead of vectors, as the embedder refuses texts of
            theirs.
    """

    space: Space
    replaced: int | None
    vectors: int
    indexes: int
    refused: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """Chunks without a vector, and the part of a page that they are all of."""

    page: Page
    chunks: Sequence[Row[Any]]


class Reembedding(ChunkWalk):
    """One run that fills the space of an embedder and makes it the default."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        embedder: Embedder,
        contexts: Contexts,
        settings: Settings,
        on_progress: OnProgress | None = None,
        *,
        skip_refused: bool = False,
    ) -> None:
        super().__init__(database, tables, settings, on_progress)
        self._embedder = embedder
        self._contexts = contexts
        self._identity = identity_of(embedder)
        self._reading_or_writing = anyio.Lock()
        self._skip_refused = skip_refused
        self._refusals = Refusals()

    async def run(self) -> Filled:
        """Fill the space, build its indexes and switch; of several runs one works at a time.

        Every chunk has a vector then, or a job that will make it: those that are added from now
        on by whoever does not know the space yet get a job for it with the chunk.

        Raises:
            EmbeddingError: The embedder failed; the vectors made before are kept.
            TextsRefused: It refused texts, which are not to be skipped; nothing was switched.
            ConflictError: Somebody dropped the space meanwhile.
        """
        name = f"llmemory reembed {self._tables.schema}"
        async with (
            self._database.connect() as connection,
            session_lock(self._database, connection, name, wait=True),
        ):
            space = await self._begin(connection)
            if space.is_default:
                made = await self._fill(connection, space, "embedding")
                return Filled(space, None, made, 0, await self._leave_jobs(space))
            writers = await self._writers(connection)
            made = await self._fill(connection, space, "embedding")
            # What they wrote has no job: the space could not be seen yet.
            await self._wait_for(connection, writers, str(space))
            made += await self._fill(connection, space, "catching up")
            indexes = await self._maintenance.prepare_space(space.space_id)
            made += await self._fill(connection, space, "catching up")
            refused = await self._leave_jobs(space)
            replaced = await self._switch(space)
            return Filled(space, replaced, made, indexes, refused)

    async def _begin(self, connection: AsyncConnection) -> StoredSpace:
        """Return the space, known to all writers from now on."""
        for _ in range(ATTEMPTS):
            spaces = await stored_spaces(connection, self._tables)
            found = next((space for space in spaces if space.identity == self._identity), None)
            if not any(space.is_default for space in spaces):
                await open_space(connection, self._tables, self._identity)
            elif found is None:
                await add_space(connection, self._tables, self._identity, "filling")
            elif found.is_default or found.state in FED:
                return found
            else:
                with translated_errors():
                    await connection.execute(
                        spaces_sql.mark_filling(self._tables), {"chosen": found.space_id}
                    )
        raise ConflictError("Others change the spaces all the time; try again.")

    async def _fill(self, connection: AsyncConnection, space: StoredSpace, step: str) -> int:
        """Make the vectors that are missing now; return how many.

        Raises:
            TextsRefused: The embedder refused texts, which are not to be skipped.
        """
        made = done = 0
        # Asked once, and forgotten once the chunk is gone.
        known, self._refusals = self._refusals, Refusals()

        async def embed(batch: _Batch) -> None:
            nonlocal made, done
            written = await self._embed(space, batch) if batch.chunks else 0
            made += written
            done += batch.page.chunks
            self._report(step, str(space), done, max(done, batch.page.total))

        async with aclosing(self._batches(connection, space, known)) as batches:
            await for_each(batches, embed, at_once=concurrency_of(self._embedder))
        if self._refusals and not self._skip_refused:
            raise self._refusals.error()
        return made

    async def _batches(
        self, connection: AsyncConnection, space: StoredSpace, known: Refusals
    ) -> AsyncGenerator[_Batch]:
        """Yield the chunks that have no vector, a page in parts that the embedder takes.

        Those that are `known` to be refused still are.
        """
        async with aclosing(self._pages(connection)) as pages:
            async for page in pages:
                # With a connection each for reading and writing, the run would hold three.
                async with self._reading_or_writing, self._by_keys() as reader:
                    statement = sql.missing_chunks(self._tables)
                    found = await reader.execute(statement, self._in_space(page, space))
                    missing = []
                    for chunk in found:
                        if (refusal := known.get(key := _key(chunk))) is None:
                            missing.append(chunk)
                        else:
                            self._refusals[key] = refusal
                for batch in self._parts(page, missing):
                    yield batch

    def _parts(self, page: Page, missing: Sequence[Row[Any]]) -> Iterator[_Batch]:
        if not missing:
            yield _Batch(page, ())
        after, done, size = page.after, 0, self._settings.embedding_batch_size
        for start in range(0, len(missing), size):
            chunks = missing[start : start + size]
            last = _key(chunks[-1])
            end = page.chunks * (start + len(chunks)) // len(missing)
            yield _Batch(replace(page, after=after, last=last, chunks=end - done), chunks)
            after, done = last, end

    async def _embed(self, space: StoredSpace, batch: _Batch) -> int:
        """Embed chunks outside any transaction, and write in one what is still wanted."""
        possible = await self._texts(batch.chunks)
        if possible.error is not None:
            raise possible.error
        text_of = dict(zip(possible.numbers, possible.texts, strict=True))
        texts = list(dict.fromkeys(text_of.values()))
        if texts:
            made = await embed_all_but_refused(self._embedder, texts)
        else:
            made = PartlyEmbedded()
        row_of = {texts[number]: row for row, number in enumerate(made.numbers)}
        refused = {texts[number]: error for number, error in made.errors.items()}
        errors, rows = dict(possible.errors), {}
        for number, text in text_of.items():
            if (error := refused.get(text)) is None:
                rows[_key(batch.chunks[number])] = row_of[text]
            else:
                errors[number] = error
        for number, error in errors.items():
            chunk = batch.chunks[number]
            self._refusals[_key(chunk)] = Refusal(chunk.document_id, chunk.position, error)
        if not rows:
            return 0
        import numpy as np

        vectors = np.concatenate(made.vectors)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._write(space, batch.page, rows, vectors)
            except ConflictError as error:
                # A chunk was deleted just now, or another process made its vector.
                if error.sqlstate is None or attempt == ATTEMPTS:
                    raise
        raise AssertionError

    async def _texts(self, chunks: Sequence[Row[Any]]) -> PossibleTexts:
        """Return what the embedder is given for `chunks`."""
        contents: dict[tuple[str, UUID], str] = {}
        if self._contexts.are_made:
            async with self._reading_or_writing, self._database.connect() as connection:
                for owner_id, group in groupby(chunks, key=lambda chunk: chunk.owner_id):
                    ids = {chunk.document_id for chunk in group}
                    found = await connection.execute(
                        queue_sql.contents(self._tables),
                        {"owner": owner_id, "document_ids": list(ids)},
                    )
                    contents |= {(owner_id, row.document_id): row.content for row in found}
        return await self._contexts.possible_texts(
            [
                ChunkToEmbed(
                    chunk.owner_id,
                    chunk.document_name,
                    tuple(chunk.headings),
                    chunk.content,
                    contents.get((chunk.owner_id, chunk.document_id), ""),
                )
                for chunk in chunks
            ]
        )

    async def _write(
        self, space: StoredSpace, page: Page, rows: dict[Key, int], vectors: HalfVectors
    ) -> int:
        async with self._reading_or_writing, self._by_keys() as connection:
            await self._hold(connection, space)
            found = await connection.execute(
                sql.missing_keys(self._tables), self._in_space(page, space)
            )
            keys = [key for key in (Key(*row) for row in found) if key in rows]
            groups = []
            for owner_id, group in groupby(keys, key=lambda key: key.owner_id):
                theirs = list(group)
                ids = b"".join(key.chunk_id.bytes for key in theirs)
                groups.append(binary_copy.VectorGroup(owner_id, ids, [rows[k] for k in theirs]))
            if groups:
                await copy_rows(
                    connection,
                    self._tables.embeddings,
                    ("owner_id", "chunk_id", "space_id", "embedding"),
                    binary_copy.vector_rows(space.space_id, vectors, groups),
                    row_level_security=self._settings.row_level_security,
                )
        return len(keys)

    async def _hold(self, connection: AsyncConnection, space: StoredSpace) -> None:
        """Keep the space from being dropped until the transaction ends."""
        held = await connection.execute(
            spaces_sql.hold_state(self._tables), {"chosen": space.space_id}
        )
        if not (space.is_default or held.scalar_one() in FED):
            raise _dropped(space)

    async def _leave_jobs(self, space: StoredSpace) -> int:
        return await self._refusals.leave_jobs(self._database, self._tables, space, self._settings)

    async def _switch(self, space: StoredSpace) -> int | None:
        """Make the space the default, in one transaction; return which one was it."""
        chosen = {"chosen": space.space_id}
        async with self._database.transaction() as connection:
            former = await connection.execute(spaces_sql.end_default(self._tables), chosen)
            replaced: int | None = former.scalar()
            switched = await connection.execute(spaces_sql.make_default(self._tables), chosen)
            if not switched.rowcount:
                raise _dropped(space)
        return replaced


def _key(chunk: Row[Any]) -> Key:
    return Key(chunk.owner_id, chunk.chunk_id)


def _dropped(space: Space) -> ConflictError:
    return ConflictError(f"The vectors of {space} were dropped while they were made; try again.")
