"""Which owners have an HNSW index, as a memory knows it from time to time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import get_args

from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.models import Tables, quoted_identifier
from llmemory.search.known_filters import KnownFilters
from llmemory.statements.vector_indexes import LIST_INDEXES, Held, index_name

__all__ = ["StoredIndex", "VectorIndex", "VectorIndexes", "stored_indexes"]


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """An index as the catalogue lists it.

    Attributes:
        name: Its name, which says owner and space.
        is_valid: Whether searches can use it; not while it is built, nor if that was broken off.
        vectors: Vectors in it, about.
    """

    name: str
    is_valid: bool
    vectors: int


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """What a search needs to know of its owner's index.

    Attributes:
        holds: Vectors in half precision, or only their signs.
        vectors: Vectors in it, about.
    """

    holds: Held
    vectors: int


async def stored_indexes(connection: AsyncConnection, tables: Tables) -> list[StoredIndex]:
    """Return the HNSW indexes of a schema, unusable ones included."""
    table = f"{quoted_identifier(tables.schema)}.{tables.embeddings.name}"
    with translated_errors():
        rows = await connection.execute(LIST_INDEXES, {"indexed_table": table})
    return [StoredIndex(row.name, row.is_valid, max(int(row.vectors), 0)) for row in rows]


class VectorIndexes:
    """The usable indexes of a schema, looked up anew when what is known has become old.

    Attributes:
        filters: What is known of filters on indexed owners.
    """

    def __init__(self, tables: Tables, refresh_s: float) -> None:
        self._tables = tables
        self._refresh_s = refresh_s
        self._known: dict[str, int] = {}
        self._expires_s = 0.0
        self.filters = KnownFilters(refresh_s)

    async def find(
        self, connection: AsyncConnection, owner_id: str, space_id: int
    ) -> VectorIndex | None:
        """Return the index of an owner's vectors, or None if they are searched without one."""
        if time.monotonic() >= self._expires_s:
            await self.refresh(connection)
        for holds in get_args(Held) if self._known else ():
            vectors = self._known.get(index_name(owner_id, space_id, holds))
            if vectors is not None:
                return VectorIndex(holds, vectors)
        return None

    async def refresh(self, connection: AsyncConnection) -> None:
        """Look now."""
        found = await stored_indexes(connection, self._tables)
        self._known = {index.name: index.vectors for index in found if index.is_valid}
        self._expires_s = time.monotonic() + self._refresh_s

    def forget(self) -> None:
        """Have the next search look again."""
        self._expires_s = 0.0
