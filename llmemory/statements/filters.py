"""Conditions on documents: their shape decides the SQL, their values are always bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Table,
    Text,
    and_,
    bindparam,
    literal_column,
    select,
)

from llmemory.statements.metadata import metadata_condition, metadata_parameters
from llmemory.validation.filters import EVERYTHING, Condition, Filters, Group

__all__ = ["FilterShape", "conditions", "parameters", "row_conditions", "shape_of"]


@dataclass(frozen=True, slots=True)
class FilterShape:
    """Which conditions a statement has: all that its SQL depends on.

    Attributes:
        metadata: The tests of the metadata and how they are joined.
        has_index: Whether the index of metadata may serve them.
    """

    document_type: bool = False
    id_at_origin: bool = False
    date_from: bool = False
    date_to: bool = False
    metadata: Condition | Group = EVERYTHING.shape
    has_index: bool = True

    def is_empty(self) -> bool:
        """Return whether every document passes."""
        return self == FilterShape(has_index=self.has_index)


def shape_of(filters: Filters) -> FilterShape:
    """Return the shape of `filters`."""
    return FilterShape(
        document_type=filters.document_type is not None,
        id_at_origin=filters.id_at_origin is not None,
        date_from=filters.date_from is not None,
        date_to=filters.date_to is not None,
        metadata=filters.metadata.shape,
        has_index=filters.has_index,
    )


def parameters(filters: Filters, owner_id: str) -> dict[str, Any]:
    """Return the values to bind to the conditions of ``shape_of(filters)`` on an owner's rows."""
    values = metadata_parameters(filters.metadata.operands, owner_id)
    if filters.document_type is not None:
        values["document_type"] = filters.document_type.value
    if filters.id_at_origin is not None:
        values["id_at_origin"] = filters.id_at_origin
    if filters.date_from is not None:
        values["date_from"] = filters.date_from
    if filters.date_to is not None:
        values["date_to"] = filters.date_to
    return values


@lru_cache(maxsize=256)
def conditions(
    documents: Table, shape: FilterShape, *, leave_few: bool = False
) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of `shape` on `documents`, which indexes may serve.

    Args:
        documents: What is filtered.
        shape: The conditions.
        leave_few: Whether to plan for few that they leave, so that one plan serves all values.
    """
    return _conditions(documents, shape, by_index=shape.has_index, leave_few=leave_few)


def row_conditions(documents: FromClause, shape: FilterShape) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of `shape` on rows that are asked one after the other."""
    return _conditions(documents, shape, by_index=False, leave_few=False)


def _conditions(
    documents: FromClause, shape: FilterShape, *, by_index: bool, leave_few: bool
) -> tuple[ColumnElement[bool], ...]:
    column = documents.c
    found: list[ColumnElement[bool]] = []
    if shape.document_type and leave_few:
        found.append(_few_between(column.document_type, "document_type", "document_type"))
    elif shape.document_type:
        found.append(column.document_type == bindparam("document_type", type_=Text))
    if shape.id_at_origin:
        found.append(column.id_at_origin == bindparam("id_at_origin", type_=Text))
    if shape.date_from or shape.date_to:
        ends = ("date_from" if shape.date_from else None, "date_to" if shape.date_to else None)
        between = _few_between if leave_few else _between
        found.append(between(column.document_date, *ends))
    if shape.metadata != EVERYTHING.shape:
        found.append(metadata_condition(documents, shape.metadata, by_index=by_index))
    return tuple(found)


def _between(
    column: ColumnElement[Any], least: str | None, most: str | None
) -> ColumnElement[bool]:
    """Return that a column is not beyond the values bound by these names."""
    ends = [column >= bindparam(least, type_=column.type)] if least else []
    return and_(*ends, column <= bindparam(most, type_=column.type)) if most else ends[0]


def _few_between(
    column: ColumnElement[Any], least: str | None, most: str | None
) -> ColumnElement[bool]:
    """Return the same in a form of which the planner expects 0.5 % of the rows.

    That is what it thinks of any two ends that it does not know. Else it would plan for the
    values of each search anew, which takes as long as reading what they leave.
    """
    first, last = (
        bindparam(name, type_=column.type) if name else literal_column(f"'{end}'::timestamptz")
        for name, end in ((least, "-infinity"), (most, "infinity"))
    )
    return column.between(select(first).scalar_subquery(), select(last).scalar_subquery())
