"""Conditions on documents: their shape decides the SQL, their values are always bound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, bindparam, cast, func, or_
from sqlalchemy.dialects.postgresql import JSONB

from llmemory.validation import Filters

__all__ = ["FilterShape", "conditions", "parameters", "shape_of"]


@dataclass(frozen=True, slots=True)
class FilterShape:
    """Which conditions a statement has: all that its SQL depends on.

    Attributes:
        contains: Whether some keys must equal a text, number or boolean.
        equals: How many keys must equal a list or an object.
        absent: How many keys must be null or missing.
    """

    document_type: bool = False
    id_at_origin: bool = False
    date_from: bool = False
    date_to: bool = False
    contains: bool = False
    equals: int = 0
    absent: int = 0

    def is_empty(self) -> bool:
        """Return whether every document passes."""
        return self == FilterShape()


def shape_of(filters: Filters) -> FilterShape:
    """Return the shape of `filters`."""
    scalars, nested, absent = _split(filters.metadata)
    return FilterShape(
        document_type=filters.document_type is not None,
        id_at_origin=filters.id_at_origin is not None,
        date_from=filters.date_from is not None,
        date_to=filters.date_to is not None,
        contains=bool(scalars or nested),
        equals=len(nested),
        absent=len(absent),
    )


def parameters(filters: Filters) -> dict[str, Any]:
    """Return the values to bind to the conditions of ``shape_of(filters)``."""
    values: dict[str, Any] = {}
    if filters.document_type is not None:
        values["document_type"] = filters.document_type.value
    if filters.id_at_origin is not None:
        values["id_at_origin"] = filters.id_at_origin
    if filters.date_from is not None:
        values["date_from"] = filters.date_from
    if filters.date_to is not None:
        values["date_to"] = filters.date_to
    scalars, nested, absent = _split(filters.metadata)
    if scalars or nested:
        values["contains"] = json.dumps({**scalars, **nested})
    for number, (key, value) in enumerate(nested.items()):
        values[f"equals_key_{number}"] = key
        values[f"equals_value_{number}"] = json.dumps(value)
    for number, key in enumerate(absent):
        values[f"absent_key_{number}"] = key
    return values


def conditions(documents: Table, shape: FilterShape) -> list[ColumnElement[bool]]:
    """Return the conditions of `shape` on `documents`.

    Containment is served by ``ix_documents_metadata``; for a scalar it is equality, for a list or
    an object it narrows down what the comparison behind it has to look at.
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
    if shape.contains:
        found.append(column.metadata.contains(_json("contains")))
    for number in range(shape.equals):
        value = func.jsonb_extract_path(
            column.metadata, bindparam(f"equals_key_{number}", type_=Text), type_=JSONB
        )
        found.append(value == _json(f"equals_value_{number}"))
    for number in range(shape.absent):
        value = func.jsonb_extract_path(
            column.metadata, bindparam(f"absent_key_{number}", type_=Text), type_=JSONB
        )
        found.append(or_(value.is_(None), func.jsonb_typeof(value) == "null"))
    return found


def _json(name: str) -> ColumnElement[Any]:
    # As text: a caller's engine may have a JSON codec of its own.
    return cast(bindparam(name, type_=Text), JSONB)


def _split(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    nested = {key: value for key, value in metadata.items() if isinstance(value, dict | list)}
    absent = [key for key, value in metadata.items() if value is None]
    scalars = {
        key: value
        for key, value in metadata.items()
        if value is not None and not isinstance(value, dict | list)
    }
    return scalars, nested, absent
