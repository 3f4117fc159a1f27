"""The embedding space of a schema: which model its vectors come from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.drivers import translated_errors
from llmemory.errors import EmbedderMismatchError
from llmemory.models import Tables
from llmemory.statements import spaces as sql

__all__ = ["Space", "open_space"]


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors of one model."""

    space_id: int
    provider: str
    model: str
    dimensions: int

    def __str__(self) -> str:
        return f"{self.provider}/{self.model} ({self.dimensions} dimensions)"


async def open_space(
    connection: AsyncConnection, tables: Tables, *, provider: str, model: str, dimensions: int
) -> Space:
    """Return the schema's default space, made for this model if there is none yet.

    Raises:
        EmbedderMismatchError: The schema holds vectors of another model.
    """
    with translated_errors():
        row = await _default(connection, tables)
        if row is None:
            await connection.execute(
                sql.insert_first_space(tables),
                {
                    "given_provider": provider,
                    "given_model": model,
                    "given_dimensions": dimensions,
                    "now": datetime.now(UTC),
                },
            )
            row = await _default(connection, tables)
    if row is None:
        raise RuntimeError("the embedding space that was just made is gone")
    stored = Space(row.space_id, row.provider, row.model, row.dimensions)
    given = Space(stored.space_id, provider, model, dimensions)
    if stored != given:
        raise EmbedderMismatchError(
            f'The vectors in schema "{tables.schema}" come from {stored}, the embedder in use is '
            f"{given}. Use the embedder of the stored vectors, or another schema.",
            stored=str(stored),
            given=str(given),
        )
    return stored


async def _default(connection: AsyncConnection, tables: Tables) -> Row[Any] | None:
    row: Row[Any] | None = (await connection.execute(sql.default_space(tables))).first()
    return row
