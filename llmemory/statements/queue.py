"""Statements of the queue of documents that wait for their vectors.

Times are bound, so that the statements run on distributed tables too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Integer,
    SmallInteger,
    Text,
    Update,
    Uuid,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from llmemory.models import Tables
from llmemory.statements import AnySelect

__all__ = ["chunks_without_vector", "claim_jobs", "fail_jobs", "finish_jobs", "owners_with_jobs"]

_TIMESTAMP = TIMESTAMP(timezone=True)


def _owner(table: Any) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = table.c.owner_id == bindparam("owner", type_=Text)
    return condition


def _is_due(tables: Tables) -> ColumnElement[bool]:
    jobs = tables.embedding_jobs
    now = bindparam("now", type_=_TIMESTAMP)
    return (
        (jobs.c.state == "queued")
        & (jobs.c.space_id == bindparam("space", type_=SmallInteger))
        & (jobs.c.available_at <= now)
        & or_(jobs.c.leased_until.is_(None), jobs.c.leased_until <= now)
    )


@lru_cache(maxsize=256)
def owners_with_jobs(tables: Tables) -> AnySelect:
    """Read the owners that have due jobs, the longest waiting first."""
    jobs = tables.embedding_jobs
    return (
        select(jobs.c.owner_id)
        .where(_is_due(tables))
        .group_by(jobs.c.owner_id)
        .order_by(func.min(jobs.c.available_at), jobs.c.owner_id)
        .limit(bindparam("limit", type_=Integer))
    )


@lru_cache(maxsize=256)
def claim_jobs(tables: Tables) -> Any:
    """Lease at most ``limit`` due jobs of an owner; those that another worker holds are skipped.

    Served by ``ix_embedding_jobs_owner_id_state_available_at``.
    """
    jobs = tables.embedding_jobs
    due = (
        select(jobs.c.job_id)
        .where(_owner(jobs), _is_due(tables))
        .order_by(jobs.c.available_at, jobs.c.job_id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    )
    return (
        update(jobs)
        .values(
            leased_until=bindparam("lease", type_=_TIMESTAMP),
            attempts=jobs.c.attempts + 1,
        )
        .where(_owner(jobs), jobs.c.job_id.in_(due))
        .returning(jobs.c.job_id, jobs.c.document_id, jobs.c.attempts)
    )


@lru_cache(maxsize=256)
def chunks_without_vector(tables: Tables) -> AnySelect:
    """Read the chunks of ``document_ids`` that have no vector in ``space``, in order."""
    chunks, embeddings = tables.chunks, tables.embeddings
    has_vector = exists().where(
        _owner(embeddings),
        embeddings.c.chunk_id == chunks.c.chunk_id,
        embeddings.c.space_id == bindparam("space", type_=SmallInteger),
    )
    wanted = bindparam("document_ids", type_=ARRAY(Uuid()))
    return (
        select(chunks.c.document_id, chunks.c.chunk_id, chunks.c.content)
        .where(_owner(chunks), chunks.c.document_id == func.any(wanted), ~has_vector)
        .order_by(chunks.c.document_id, chunks.c.position)
    )


def _jobs(tables: Tables) -> list[ColumnElement[bool]]:
    jobs = tables.embedding_jobs
    return [_owner(jobs), jobs.c.job_id == func.any(bindparam("job_ids", type_=ARRAY(Uuid())))]


@lru_cache(maxsize=256)
def finish_jobs(tables: Tables) -> Delete:
    """Delete ``job_ids``: their documents have all their vectors."""
    return delete(tables.embedding_jobs).where(*_jobs(tables))


@lru_cache(maxsize=256)
def fail_jobs(tables: Tables) -> Update:
    """Give ``job_ids`` back with the reason; one out of attempts is left as failed."""
    jobs = tables.embedding_jobs
    is_last = jobs.c.attempts >= bindparam("most_attempts", type_=Integer)
    return (
        update(jobs)
        .values(
            state=case((is_last, "failed"), else_="queued"),
            available_at=bindparam("retry_at", type_=_TIMESTAMP),
            leased_until=None,
            last_error=bindparam("reason", type_=Text),
        )
        .where(*_jobs(tables))
    )
