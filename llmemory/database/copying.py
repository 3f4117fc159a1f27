"""COPY into a table, which PostgreSQL refuses where row level security binds the role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import MetaData, Table
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.database.drivers import copy_into
from llmemory.statements.row_level_security import insert_values, staging

__all__ = ["copy_rows", "insert_rows"]


async def copy_rows(
    connection: AsyncConnection,
    table: Table,
    columns: tuple[str, ...],
    blocks: Iterable[bytes],
    *,
    row_level_security: bool,
) -> None:
    """Send `blocks`, one binary COPY stream, into `columns` of `table`.

    Args:
        connection: Has executed a statement in its transaction before.
        table: Where the rows belong.
        columns: What the stream holds.
        blocks: The stream.
        row_level_security: Copy into a temporary table, and insert from there.
    """
    if not row_level_security:
        await copy_into(connection, table, columns, blocks)
        return
    staged = _staged(table)
    statements = staging(table, staged, columns)
    with translated_errors():
        await connection.execute(statements.create)
        await copy_into(connection, staged, columns, blocks)
        await connection.execute(statements.insert)
        await connection.execute(statements.drop)


async def insert_rows(
    connection: AsyncConnection, table: Table, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Insert a few rows, given as values by column."""
    if values := list(rows):
        with translated_errors():
            await connection.execute(insert_values(table), values)


@lru_cache(maxsize=256)
def _staged(table: Table) -> Table:
    return Table(f"llmemory_new_{table.name}", MetaData(), schema="pg_temp")
