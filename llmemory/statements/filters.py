"""Conditions on documents: their shape decides the SQL, their values are always bound."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, bindparam

from llmemory.statements.metadata import metadata_condition, metadata_parameters
from llmemory.validation.filters import EVERYTHING, Condition, Filters, Group

__all__ = ["FilterShape", "conditions", "parameters", "shape_of"]


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
    documents: Table, shape: FilterShape, *, by_index: bool = True
) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of `shape` on `documents`, which the arms of a search share.

    Args:
        documents: What is filtered.
        shape: The conditions.
        by_index: Whether an index may serve them, or rows are asked one by one.
    """
    column = documents.c
    found: list[ColumnElement[bool]] = []
    if shape.document_type:
        found.append(column.document_type == bindparam("document_type", type_=Text))
    if shape.id_at_origin:
        found.append(column.id_at_origin == bindparam("id_at_origin", type_=Text))
    if shape.date_from:
        found.append(
            column.document_date >= bindparam("date_from", type_=column.document_date.type)
        )
    if shape.date_to:
        found.append(column.document_date <= bindparam("date_to", type_=column.document_date.type))
    if shape.metadata != EVERYTHING.shape:
        by_index = by_index and shape.has_index
        found.append(metadata_condition(documents, shape.metadata, by_index=by_index))
    return tuple(found)
