"""Parameters that statements share: whose rows, of which space, and rows given as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    SmallInteger,
    TableValuedAlias,
    Text,
    bindparam,
    column,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.types import TypeEngine

__all__ = ["MOMENT", "any_of", "arrays", "given_rows", "owner_is", "space_is"]

MOMENT = TIMESTAMP(timezone=True)


def owner_is(table: FromClause) -> ColumnElement[bool]:
    """Return that a row of `table` is the owner's: it stands on every table of a statement."""
    return table.c.owner_id == bindparam("owner", type_=Text)


def space_is(table: FromClause) -> ColumnElement[bool]:
    """Return that a row of `table` is of the space."""
    return table.c.space_id == bindparam("space", type_=SmallInteger)


def any_of(table_column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Return that a column has one of the values of the array bound as `name`."""
    return table_column == func.any(bindparam(name, type_=ARRAY(table_column.type)))


def arrays(**values: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return columns' values under the names that ``given_rows`` binds them by.

    A parameter of a column's own name would be taken for the column in SET.
    """
    return {f"{name}_array": value for name, value in values.items()}


def given_rows(types: Mapping[str, TypeEngine[Any]]) -> TableValuedAlias:
    """Return one row per element of the arrays bound by ``arrays``."""
    bound = [bindparam(f"{name}_array", type_=ARRAY(kind)) for name, kind in types.items()]
    return (
        func.unnest(*bound)
        .table_valued(*(column(name, kind) for name, kind in types.items()))
        .render_derived(name="given")
    )
