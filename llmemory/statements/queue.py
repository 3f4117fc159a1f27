"""Statements of the queue of documents that wait for their vectors.

Times and pauses are computed by the caller and bound, so that the statements run on distributed
tables too; so are locks, which are taken for one owner at a time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    TableValuedAlias,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    text,
    update,
)
from sqlalchemy.types import TypeEngine

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.jobs import is_leased, now
from llmemory.statements.parameters import MOMENT, any_of, given_rows, owner_is, space_is

__all__ = [
    "CHANNEL",
    "NOTIFY",
    "any_owner_with_due_jobs",
    "chunks_to_embed",
    "chunks_with_vector",
    "contents",
    "due_jobs",
    "finish_jobs",
    "lease_jobs",
    "next_owner_with_due_jobs",
    "renew_jobs",
    "settle_jobs",
]


CHANNEL = "llmemory_jobs"
"""Where workers listen; the payload is their schema, whose name may be as long as a channel's."""


NOTIFY = text("SELECT pg_notify(:channel, :payload)").bindparams(
    bindparam("channel", type_=Text), bindparam("payload", type_=Text)
)
"""Tells those who listen, once the transaction commits; the same again costs nothing."""


def _is_due(tables: Tables) -> ColumnElement[bool]:
    jobs = tables.embedding_jobs
    return and_(
        jobs.c.state == "queued", space_is(jobs), jobs.c.available_at <= now(), ~is_leased(tables)
    )


@lru_cache(maxsize=256)
def any_owner_with_due_jobs(tables: Tables) -> AnySelect:
    """Read one of the owners that have due jobs, whichever."""
    jobs = tables.embedding_jobs
    owners = select(jobs.c.owner_id).where(_is_due(tables)).distinct().subquery("owners")
    return select(owners.c.owner_id).order_by(func.random()).limit(1)


@lru_cache(maxsize=256)
def next_owner_with_due_jobs(tables: Tables) -> AnySelect:
    """Read the first owner behind ``after`` that has due jobs.

    Served by ``ix_embedding_jobs_owner_id_state_available_at``: however many jobs an owner has, the
    first one is found.
    """
    jobs = tables.embedding_jobs
    return (
        select(jobs.c.owner_id)
        .where(jobs.c.owner_id > bindparam("after", type_=Text), _is_due(tables))
        .order_by(jobs.c.owner_id)
        .limit(1)
    )


@lru_cache(maxsize=256)
def due_jobs(tables: Tables) -> AnySelect:
    """Lock at most ``limit`` due jobs of an owner, the longest waiting first.

    Those that another worker is about to lease are skipped. Served by
    ``ix_embedding_jobs_owner_id_state_available_at``.
    """
    jobs, documents = tables.embedding_jobs, tables.documents
    chunk_count = (
        select(documents.c.chunk_count)
        .where(owner_is(documents), documents.c.document_id == jobs.c.document_id)
        .scalar_subquery()
    )
    return (
        select(
            jobs.c.job_id,
            jobs.c.document_id,
            jobs.c.attempts,
            jobs.c.available_at,
            chunk_count.label("chunk_count"),
        )
        .where(owner_is(jobs), _is_due(tables))
        .order_by(jobs.c.available_at, jobs.c.job_id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    )


@lru_cache(maxsize=256)
def lease_jobs(tables: Tables) -> Update:
    """Lease ``job_ids``, which are locked, and count the attempt."""
    jobs = tables.embedding_jobs
    return (
        update(jobs)
        .values(leased_until=bindparam("lease", type_=MOMENT), attempts=jobs.c.attempts + 1)
        .where(owner_is(jobs), any_of(jobs.c.job_id, "job_ids"))
    )


_HELD: dict[str, TypeEngine[Any]] = {
    "job_id": Uuid(),
    "attempts": Integer(),
    "available_at": MOMENT,
}


def _is_unlocked(tables: Tables, by: str, array: str) -> ColumnElement[bool]:
    """Choose jobs by an array of ids, but for those that another transaction has locked."""
    others = tables.embedding_jobs.alias("others")
    unlocked = (
        select(others.c.job_id)
        .where(owner_is(others), any_of(others.c[by], array))
        .order_by(others.c.job_id)
        .with_for_update(skip_locked=True)
    )
    return tables.embedding_jobs.c.job_id.in_(unlocked)


def _is_held(tables: Tables, rows: TableValuedAlias) -> ColumnElement[bool]:
    """Compare jobs with what they were when they were leased.

    Another lease has another number of attempts, and a document that was replaced has its job
    begin anew, at another time. A job that another transaction has locked is about to be replaced
    or deleted: it is passed over, or a user's open transaction would hold up the worker.
    """
    jobs = tables.embedding_jobs
    return and_(
        owner_is(jobs),
        _is_unlocked(tables, "job_id", "job_id_array"),
        jobs.c.state == "queued",
        *(jobs.c[name] == rows.c[name] for name in _HELD),
    )


@lru_cache(maxsize=256)
def renew_jobs(tables: Tables) -> Update:
    """Extend the lease of the jobs that are still held."""
    rows = given_rows(_HELD)
    return (
        update(tables.embedding_jobs)
        .values(leased_until=bindparam("lease", type_=MOMENT))
        .where(_is_held(tables, rows))
    )


@lru_cache(maxsize=256)
def settle_jobs(tables: Tables) -> Any:
    """Give back the jobs that are still held, each as its row of the arrays says."""
    rows = given_rows(
        {
            **_HELD,
            "new_state": Text(),
            "new_attempts": Integer(),
            "new_available_at": MOMENT,
            "reason": Text(),
        }
    )
    jobs = tables.embedding_jobs
    return (
        update(jobs)
        .values(
            state=rows.c.new_state,
            attempts=rows.c.new_attempts,
            available_at=rows.c.new_available_at,
            leased_until=None,
            last_error=func.coalesce(rows.c.reason, jobs.c.last_error),
        )
        .where(_is_held(tables, rows))
        .returning(jobs.c.job_id)
    )


def _has_vector(tables: Tables) -> ColumnElement[bool]:
    chunks, embeddings = tables.chunks, tables.embeddings
    return exists().where(
        owner_is(embeddings), embeddings.c.chunk_id == chunks.c.chunk_id, space_is(embeddings)
    )


@lru_cache(maxsize=256)
def chunks_to_embed(tables: Tables) -> AnySelect:
    """Read at most ``limit`` chunks of ``document_ids`` that have no vector in ``space``, in order.

    Each with what its document is now. Served by ``ix_chunks_owner_id_document_id_position``.
    """
    chunks, documents = tables.chunks, tables.documents
    return (
        select(
            chunks.c.document_id,
            chunks.c.chunk_id,
            chunks.c.position,
            chunks.c.headings,
            chunks.c.content,
            documents.c.document_name,
            documents.c.updated_at,
        )
        .where(
            owner_is(chunks),
            any_of(chunks.c.document_id, "document_ids"),
            owner_is(documents),
            documents.c.document_id == chunks.c.document_id,
            ~_has_vector(tables),
        )
        .order_by(chunks.c.document_id, chunks.c.position)
        .limit(bindparam("limit", type_=Integer))
    )


@lru_cache(maxsize=256)
def contents(tables: Tables) -> AnySelect:
    """Read the text of ``document_ids``."""
    documents = tables.documents
    return select(documents.c.document_id, documents.c.content).where(
        owner_is(documents), any_of(documents.c.document_id, "document_ids")
    )


@lru_cache(maxsize=256)
def chunks_with_vector(tables: Tables) -> AnySelect:
    """Read which of ``chunk_ids`` have a vector in ``space``."""
    embeddings = tables.embeddings
    return select(embeddings.c.chunk_id).where(
        owner_is(embeddings), any_of(embeddings.c.chunk_id, "chunk_ids"), space_is(embeddings)
    )


@lru_cache(maxsize=256)
def finish_jobs(tables: Tables) -> Any:
    """Delete those jobs of ``document_ids`` whose documents have all their vectors in ``space``."""
    jobs, chunks = tables.embedding_jobs, tables.chunks
    wanting = exists().where(
        owner_is(chunks), chunks.c.document_id == jobs.c.document_id, ~_has_vector(tables)
    )
    chosen = _is_unlocked(tables, "document_id", "document_ids")
    return (
        delete(jobs)
        .where(owner_is(jobs), space_is(jobs), chosen, ~wanting)
        .returning(jobs.c.document_id)
    )
