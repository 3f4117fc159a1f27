"""Statements about embedding spaces, the one table without an owner."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Insert,
    Integer,
    SmallInteger,
    Text,
    Update,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert
from sqlalchemy.sql.dml import ReturningUpdate

from llmemory.models import Tables
from llmemory.statements import AnySelect

__all__ = [
    "count_chunks",
    "count_vectors",
    "end_default",
    "hold_state",
    "insert_space",
    "is_searched",
    "list_spaces",
    "make_default",
    "mark_dropped",
    "mark_filling",
    "state_of",
]


_SEARCHED = ("ready", "refilling")


@lru_cache(maxsize=256)
def list_spaces(tables: Tables) -> AnySelect:
    """Read all spaces, the oldest first."""
    column_ = tables.embedding_spaces.c
    return select(
        column_.space_id,
        column_.provider,
        column_.model,
        column_.dimensions,
        column_.state,
        column_.is_default,
    ).order_by(column_.space_id)


def state_of(tables: Tables) -> ColumnElement[Any]:
    """Return the state of ``space`` as a value for a statement's columns."""
    spaces = tables.embedding_spaces
    wanted = spaces.c.space_id == bindparam("space", type_=SmallInteger)
    return select(spaces.c.state).where(wanted).scalar_subquery()


def is_searched(tables: Tables) -> ColumnElement[bool]:
    """Return whether ``space`` may be searched, as a condition."""
    return state_of(tables).in_(_SEARCHED)


@lru_cache(maxsize=256)
def insert_space(tables: Tables) -> Insert:
    """Insert a space under the next number; do nothing if another process was quicker."""
    spaces = tables.embedding_spaces
    following = select(func.coalesce(func.max(spaces.c.space_id), 0) + 1).scalar_subquery()
    source = select(
        cast(following, SmallInteger),
        cast(bindparam("given_provider", type_=Text), Text),
        cast(bindparam("given_model", type_=Text), Text),
        cast(bindparam("given_dimensions", type_=Integer), Integer),
        cast(bindparam("given_state", type_=Text), Text),
        cast(bindparam("as_default", type_=Boolean), Boolean),
        cast(bindparam("now", type_=TIMESTAMP(timezone=True)), TIMESTAMP(timezone=True)),
    )
    statement = insert(spaces).from_select(
        ["space_id", "provider", "model", "dimensions", "state", "is_default", "created_at"],
        source,
    )
    return statement.on_conflict_do_nothing()


def _chosen(tables: Tables) -> ColumnElement[bool]:
    space_id = tables.embedding_spaces.c.space_id
    return space_id == bindparam("chosen", type_=SmallInteger)


@lru_cache(maxsize=256)
def mark_filling(tables: Tables) -> Update:
    """Have every writer leave jobs for ``chosen``; whoever searches it goes on doing so."""
    spaces = tables.embedding_spaces
    is_complete = spaces.c.state.in_(_SEARCHED)
    return (
        update(spaces)
        .values(state=case((is_complete, "refilling"), else_="filling"))
        .where(_chosen(tables), not_(spaces.c.is_default))
    )


@lru_cache(maxsize=256)
def end_default(tables: Tables) -> ReturningUpdate[Any]:
    """Take the default from the space that is it, in favour of ``chosen``; return which it was."""
    spaces = tables.embedding_spaces
    return (
        update(spaces)
        .values(is_default=false())
        .where(spaces.c.is_default, not_(_chosen(tables)))
        .returning(spaces.c.space_id)
    )


@lru_cache(maxsize=256)
def make_default(tables: Tables) -> Update:
    """Have new memories search the space ``chosen``, which is filled."""
    spaces = tables.embedding_spaces
    return (
        update(spaces)
        .values(is_default=true(), state=literal("ready"))
        .where(_chosen(tables), spaces.c.state.in_(["filling", "refilling"]))
    )


@lru_cache(maxsize=256)
def mark_dropped(tables: Tables) -> Update:
    """Have nobody search or write the space ``chosen`` any more, unless it is the default."""
    spaces = tables.embedding_spaces
    return (
        update(spaces)
        .values(state=literal("dropped"))
        .where(_chosen(tables), not_(spaces.c.is_default))
    )


@lru_cache(maxsize=256)
def hold_state(tables: Tables) -> AnySelect:
    """Read the state of the space ``chosen``, and keep it so until the transaction ends."""
    spaces = tables.embedding_spaces
    return select(spaces.c.state).where(_chosen(tables)).with_for_update(read=True)


@lru_cache(maxsize=256)
def count_vectors(tables: Tables) -> AnySelect:
    """Count the vectors of each space that has any."""
    space_id = tables.embeddings.c.space_id
    return select(space_id, func.count().label("vectors")).group_by(space_id)


@lru_cache(maxsize=256)
def count_chunks(tables: Tables) -> AnySelect:
    """Count the chunks of all owners."""
    return select(func.count()).select_from(tables.chunks)
