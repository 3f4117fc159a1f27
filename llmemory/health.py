"""Whether a memory can work, as a value for a health endpoint."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from llmemory import migrate
from llmemory.database import Database
from llmemory.embedding.base import Embedder
from llmemory.errors import ClosedError, LLMemoryError
from llmemory.models import tables_for
from llmemory.statements.queue import count_jobs
from llmemory.store import queue_statistics
from llmemory.types import Health

__all__ = ["check_health"]

_VERSIONS = text(
    "SELECT current_setting('server_version') AS postgresql_version, "
    "(SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector_version"
)


async def check_health(database: Database, schema: str, embedder: Embedder) -> Health:
    """Return what can be found out about `schema`; what fails becomes ``problem``.

    Raises:
        ClosedError: The database was closed.
    """
    found: dict[str, Any] = {
        "postgresql_version": None,
        "pgvector_version": None,
        "revision": None,
        "latency_ms": None,
        "queue": None,
    }
    problem = None
    try:
        async with database.connect() as connection:
            await connection.run_sync(_look, schema, found)
    except ClosedError:
        raise
    except LLMemoryError as error:
        problem = str(error)
    return Health(
        healthy=problem is None,
        problem=problem,
        schema_name=schema,
        expected_revision=migrate.HEAD,
        embedding_model=embedder.model,
        embedding_dimensions=embedder.dimensions,
        **found,
    )


def _look(connection: Connection, schema: str, found: dict[str, Any]) -> None:
    started = time.perf_counter()
    versions = connection.execute(_VERSIONS).mappings().one()
    found["latency_ms"] = (time.perf_counter() - started) * 1000
    found.update(versions)
    found["revision"] = migrate.revision_of(connection, schema)
    migrate.check(connection, schema)
    now = datetime.now(UTC)
    counting = count_jobs(tables_for(schema), of_owner=False, of_space=False)
    found["queue"] = queue_statistics(connection.execute(counting, {"now": now}).one(), now)
