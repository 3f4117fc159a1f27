"""Conditions on a document's metadata: each shape of a filter as SQL.

Every condition is true or false, never NULL, so that "not" is the exact opposite. No cast can fail:
a text is cast behind a CASE that has looked at its form.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Date,
    FromClause,
    Numeric,
    Text,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from llmemory.models import owned_metadata
from llmemory.validation.filters import Condition, Group, Kind, Operand

__all__ = ["metadata_condition", "metadata_parameters"]

COMPARED: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TYPES: dict[Kind, TypeEngine[Any]] = {
    "number": JSONB(),
    "text": Text(collation="C"),
    "decimal": Numeric(),
    "moment": TIMESTAMP(timezone=True),
    "day": Date(),
}
# Days that exist, and zones less than 16 hours away, as PostgreSQL takes them.
DATE = (
    "^(?!0000)([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    "|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
    "([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
    "(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9](:?[0-5][0-9])?)?)?)?$"
)
ZONE = "[T ].*[Z+-]"
NUMBER = "^-?[0-9]+([.][0-9]+)?([Ee][+-]?[0-9]{1,3})?$"
LONGEST_NUMBER = 1000


def metadata_condition(
    documents: FromClause, shape: Condition | Group, *, by_index: bool
) -> ColumnElement[bool]:
    """Return `shape` as a condition on the metadata of `documents`.

    The test "holds" is containment; the others look at the rows that are left.

    Args:
        documents: Whose metadata.
        shape: What is asked of it.
        by_index: Whether ``ix_documents_owner_id_metadata`` may serve containment, or rows are
            asked one by one, which is quicker without what the index is made of.
    """
    return _built(documents, shape, count(), by_index=by_index)


def metadata_parameters(operands: tuple[Operand, ...], owner_id: str) -> dict[str, Any]:
    """Return what is bound to the conditions of a shape, in the order of its tree."""
    values: dict[str, Any] = {}
    for number, (path, value) in enumerate(operands):
        name = f"filter_{number}"
        for level, key in enumerate(path):
            values[f"{name}_key_{level}"] = key
        if value is None:
            continue
        values[name] = value if isinstance(value, str) else list(value)
        if not path:
            values[f"{name}_owned"] = _owned(owner_id, value)
    return values


def _owned(owner_id: str, value: str | tuple[str, ...]) -> str | list[str]:
    """Return metadata in JSON as the index has it."""
    if isinstance(value, str):
        return f"{{{json.dumps(owner_id)}: {value}}}"
    return [f"{{{json.dumps(owner_id)}: {one}}}" for one in value]


def _built(
    documents: FromClause, shape: Condition | Group, numbers: Iterator[int], *, by_index: bool
) -> ColumnElement[bool]:
    if isinstance(shape, Condition):
        return _condition(documents, shape, f"filter_{next(numbers)}", by_index=by_index)
    by_index = by_index and _is_indexed(shape)
    parts = [_built(documents, part, numbers, by_index=by_index) for part in shape.parts]
    match shape.operator:
        case "and":
            return and_(true(), *parts)
        case "or":
            return or_(false(), *parts)
        case "not":
            return not_(*parts)


def _is_indexed(shape: Condition | Group) -> bool:
    """Return whether an index finds what may pass; else what it is made of is asked in vain."""
    if isinstance(shape, Condition):
        return shape.test == "holds"
    match shape.operator:
        case "and":
            return any(map(_is_indexed, shape.parts))
        case "or":
            return all(map(_is_indexed, shape.parts))
        case "not":
            return False


def _condition(
    documents: FromClause, condition: Condition, name: str, *, by_index: bool
) -> ColumnElement[bool]:
    metadata: ColumnElement[Any] = documents.c.metadata
    if condition.test == "holds":
        if by_index:
            metadata, name = owned_metadata(documents), f"{name}_owned"
        return metadata.bool_op("@>")(_bound(name, JSONB(), many=condition.many))
    # Step by step, since an operator that takes a path would take "0" for a place in a list.
    value = metadata
    for level in range(condition.depth):
        key = cast(bindparam(f"{name}_key_{level}", type_=Text), Text)
        value = value.op("->", return_type=JSONB())(key)
    found: ColumnElement[bool]
    match condition.test:
        case "exists":
            return value.is_not(None)
        case "missing or null":
            return func.coalesce(func.jsonb_typeof(value) == "null", true())
        case "is" if condition.many:
            # As a subquery the values are hashed, however many they are.
            elements = func.jsonb_array_elements(_bound(name, JSONB()), type_=JSONB)
            found = value.in_(select(elements.column_valued("given")))
        case "is":
            found = value == _bound(name, JSONB())
        case comparison:
            assert condition.kind is not None
            given = _bound(name, TYPES[condition.kind], many=condition.many)
            found = COMPARED[comparison](_as_kind(value, condition.kind), given)
    return func.coalesce(found, false())


def _bound(name: str, kind: TypeEngine[Any], *, many: bool = False) -> ColumnElement[Any]:
    # As text: a caller's engine may have a JSON codec of its own.
    if many:
        return func.any(cast(bindparam(name, type_=ARRAY(Text)), ARRAY(kind)))
    return cast(bindparam(name, type_=Text), kind)


def _as_kind(value: ColumnElement[Any], kind: Kind) -> ColumnElement[Any]:
    """Return the value as what it is compared as; NULL where it is none."""
    written = value.op("#>>", return_type=Text())(literal_column("'{}'"))
    is_text = func.jsonb_typeof(value) == "string"
    is_number = func.jsonb_typeof(value) == "number"
    match kind:
        case "number":
            return case((is_number, value))
        case "text":
            return case((is_text, written.collate("C")))
        case "decimal":
            is_short = func.length(written) <= LONGEST_NUMBER
            is_written_number = and_(is_text, is_short, written.regexp_match(NUMBER))
            return case((or_(is_number, is_written_number), cast(written, Numeric)))
        case "moment":
            is_date = and_(is_text, written.regexp_match(DATE))
            zoned = case((written.regexp_match(ZONE), written), else_=written + "Z")
            return case((is_date, cast(zoned, TIMESTAMP(timezone=True))))
        case "day":
            return cast(func.timezone("UTC", _as_kind(value, "moment")), Date)
