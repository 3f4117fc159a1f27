"""Statements that make, count and list the jobs of documents that wait for their vectors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Integer,
    SmallInteger,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.parameters import MOMENT, any_of, given_rows, owner_is, space_is

__all__ = [
    "count_jobs",
    "delete_jobs",
    "is_leased",
    "list_jobs",
    "now",
    "requeue_jobs",
    "upsert_jobs",
]


_STATES = ("waiting", "running", "failed")


def now() -> ColumnElement[Any]:
    """Return the caller's time."""
    return bindparam("now", type_=MOMENT)


def is_leased(tables: Tables) -> ColumnElement[bool]:
    """Return that a worker holds a job."""
    jobs = tables.embedding_jobs
    return and_(jobs.c.leased_until.is_not(None), jobs.c.leased_until > now())


@lru_cache(maxsize=256)
def upsert_jobs(tables: Tables) -> Any:
    """Queue documents of one owner, from arrays of job and document ids.

    They count as ``tried`` so often before, 0 if that is not bound.
    """
    rows = given_rows({"job_id": Uuid(), "document_id": Uuid()})
    statement = upsert(tables.embedding_jobs).from_select(
        [
            "owner_id",
            "job_id",
            "document_id",
            "space_id",
            "state",
            "attempts",
            "available_at",
            "created_at",
        ],
        select(
            cast(bindparam("owner", type_=Text), Text),
            rows.c.job_id,
            rows.c.document_id,
            cast(bindparam("space", type_=SmallInteger), SmallInteger),
            literal("queued"),
            cast(bindparam("tried", 0, type_=Integer), Integer),
            cast(now(), MOMENT),
            cast(now(), MOMENT),
        ),
    )
    return statement.on_conflict_do_update(
        index_elements=["owner_id", "document_id", "space_id"],
        set_={
            "state": statement.excluded.state,
            "attempts": statement.excluded.attempts,
            "available_at": statement.excluded.available_at,
            "leased_until": None,
            "last_error": None,
        },
    )


@lru_cache(maxsize=256)
def delete_jobs(tables: Tables) -> Delete:
    """Delete the jobs of ``document_ids`` for ``space``: their vectors are made."""
    jobs = tables.embedding_jobs
    return delete(jobs).where(
        owner_is(jobs), any_of(jobs.c.document_id, "document_ids"), space_is(jobs)
    )


def _in_state(tables: Tables, state: str) -> ColumnElement[bool]:
    is_failed = tables.embedding_jobs.c.state == "failed"
    return {
        "waiting": and_(~is_failed, ~is_leased(tables)),
        "running": and_(~is_failed, is_leased(tables)),
        "failed": is_failed,
    }[state]


@lru_cache(maxsize=256)
def count_jobs(tables: Tables, *, of_owner: bool) -> AnySelect:
    """Count a space's jobs by what they are, and read when the oldest unfinished one was made."""
    jobs = tables.embedding_jobs
    counts = [func.count().filter(_in_state(tables, state)).label(state) for state in _STATES]
    oldest = func.min(jobs.c.created_at).filter(jobs.c.state == "queued").label("oldest")
    statement: AnySelect = select(*counts, oldest).where(space_is(jobs))
    return statement.where(owner_is(jobs)) if of_owner else statement


@lru_cache(maxsize=256)
def list_jobs(tables: Tables, *, of_owner: bool, state: str | None) -> AnySelect:
    """Read ``limit`` jobs behind ``offset``, the oldest first, with their documents' names."""
    jobs, documents = tables.embedding_jobs, tables.documents
    states = {name: _in_state(tables, name) for name in _STATES}
    statement: AnySelect = (
        select(
            jobs.c.owner_id,
            jobs.c.document_id,
            documents.c.document_name,
            jobs.c.space_id,
            jobs.c.attempts,
            jobs.c.last_error,
            jobs.c.created_at,
            jobs.c.available_at,
            case(*((condition, name) for name, condition in states.items())).label("state"),
        )
        .join(
            documents,
            and_(
                documents.c.owner_id == jobs.c.owner_id,
                documents.c.document_id == jobs.c.document_id,
            ),
        )
        .order_by(jobs.c.created_at, jobs.c.owner_id, jobs.c.job_id)
        .limit(bindparam("limit", type_=Integer))
        .offset(bindparam("offset", type_=BigInteger))
    )
    if of_owner:
        statement = statement.where(owner_is(jobs), owner_is(documents))
    return statement if state is None else statement.where(states[state])


@lru_cache(maxsize=256)
def requeue_jobs(
    tables: Tables, *, of_owner: bool = False, of_documents: bool = False, of_space: bool = False
) -> Update:
    """Make failed jobs due again, with all their attempts."""
    jobs = tables.embedding_jobs
    statement = (
        update(jobs)
        .values(state="queued", attempts=0, available_at=now(), leased_until=None, last_error=None)
        .where(jobs.c.state == "failed")
    )
    if of_owner:
        statement = statement.where(owner_is(jobs))
    if of_documents:
        statement = statement.where(any_of(jobs.c.document_id, "document_ids"))
    if of_space:
        statement = statement.where(space_is(jobs))
    return statement
