"""Statements about embedding spaces."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import (
    Insert,
    Integer,
    SmallInteger,
    Text,
    bindparam,
    cast,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, insert

from llmemory.models import Tables
from llmemory.statements import AnySelect

__all__ = ["default_space", "insert_first_space"]


@lru_cache(maxsize=256)
def default_space(tables: Tables) -> AnySelect:
    """Read the space that searches use."""
    spaces = tables.embedding_spaces
    return select(spaces.c.space_id, spaces.c.provider, spaces.c.model, spaces.c.dimensions).where(
        spaces.c.is_default
    )


@lru_cache(maxsize=256)
def insert_first_space(tables: Tables) -> Insert:
    """Insert the first space as the default; do nothing if another process was quicker."""
    spaces = tables.embedding_spaces
    following = select(func.coalesce(func.max(spaces.c.space_id), 0) + 1).scalar_subquery()
    source = select(
        cast(following, SmallInteger),
        cast(bindparam("given_provider", type_=Text), Text),
        cast(bindparam("given_model", type_=Text), Text),
        cast(bindparam("given_dimensions", type_=Integer), Integer),
        literal("ready"),
        true(),
        cast(bindparam("now", type_=TIMESTAMP(timezone=True)), TIMESTAMP(timezone=True)),
    )
    statement = insert(spaces).from_select(
        ["space_id", "provider", "model", "dimensions", "state", "is_default", "created_at"],
        source,
    )
    return statement.on_conflict_do_nothing()
