"""How full the queue is, and telling workers that it has become fuller."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, TwoPhaseTransaction
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.models import Tables
from llmemory.statements import queue as queue_sql
from llmemory.types import QueueStatistics

__all__ = ["queue_statistics", "tell_workers"]


async def tell_workers(connection: AsyncConnection, tables: Tables) -> None:
    """Have workers look for jobs as soon as the transaction commits; they look by themselves too.

    PostgreSQL refuses to prepare a transaction that has notified: those of two phases do without.
    """
    transaction = connection.sync_connection and connection.sync_connection.get_transaction()
    if not isinstance(transaction, TwoPhaseTransaction):
        await connection.execute(
            queue_sql.NOTIFY, {"channel": queue_sql.CHANNEL, "payload": tables.schema}
        )


def queue_statistics(row: Row[Any], now: datetime) -> QueueStatistics:
    """Return a row of ``count_jobs``, which was read at `now`, as a value."""
    age_s = None if row.oldest is None else max(0.0, (now - row.oldest).total_seconds())
    return QueueStatistics(
        waiting=row.waiting, running=row.running, failed=row.failed, oldest_s=age_s
    )
