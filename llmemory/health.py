"""Whether a memory can work, as a value for a health endpoint."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.driver_errors import translated_errors
from llmemory.database.engines import Database
from llmemory.embedding.base import Embedder
from llmemory.errors import ClosedError, LLMemoryError
from llmemory.models import Tables
from llmemory.queue.statistics import queue_statistics
from llmemory.schema import distribution, migrate, row_level_security
from llmemory.settings import Settings
from llmemory.spaces import Identity, identity_of, stored_spaces, usable_space
from llmemory.statements.jobs import count_jobs
from llmemory.types import Health, QueueStatistics

__all__ = ["check_health"]

_VERSIONS = text(
    "SELECT current_setting('server_version') AS postgresql_version, "
    "(SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector_version"
)


async def check_health(
    database: Database, tables: Tables, embedder: Embedder, settings: Settings
) -> Health:
    """Return what can be found out about a schema; what fails becomes ``problem``.

    Raises:
        ClosedError: The database was closed.
    """
    found: dict[str, Any] = {
        "postgresql_version": None,
        "pgvector_version": None,
        "revision": None,
        "latency_ms": None,
        "embedding_state": None,
        "queue": None,
        "warnings": [],
    }
    problem = None
    try:
        async with database.connect() as connection:
            await connection.run_sync(_look, tables.schema, settings, found)
            await _look_at_spaces(connection, tables, identity_of(embedder), found)
    except ClosedError:
        raise
    except LLMemoryError as error:
        problem = str(error)
    return Health(
        healthy=problem is None,
        problem=problem,
        schema_name=tables.schema,
        expected_revision=migrate.HEAD,
        embedding_model=embedder.model,
        embedding_dimensions=embedder.dimensions,
        **found,
    )


def _look(connection: Connection, schema: str, settings: Settings, found: dict[str, Any]) -> None:
    started = time.perf_counter()
    versions = connection.execute(_VERSIONS).mappings().one()
    found["latency_ms"] = (time.perf_counter() - started) * 1000
    found.update(versions)
    found["revision"] = migrate.revision_of(connection, schema)
    migrate.check(connection, schema)
    is_expected = settings.row_level_security
    found["warnings"] = [
        *row_level_security.warnings(connection, schema, is_expected=is_expected),
        *distribution.warnings(connection, schema),
    ]


async def _look_at_spaces(
    connection: AsyncConnection, tables: Tables, wanted: Identity, found: dict[str, Any]
) -> None:
    spaces = await stored_spaces(connection, tables)
    counts = await connection.run_sync(row_level_security.sees_all, tables.schema)
    if counts:
        found["queue"] = QueueStatistics()
    for space in spaces:
        if space.identity == wanted:
            found["embedding_state"] = space.public_state
            if not counts:
                continue
            now = datetime.now(UTC)
            with translated_errors():
                counted = await connection.execute(
                    count_jobs(tables, of_owner=False), {"now": now, "space": space.space_id}
                )
            found["queue"] = queue_statistics(counted.one(), now)
    if any(space.is_default for space in spaces):
        usable_space(spaces, tables.schema, wanted)
