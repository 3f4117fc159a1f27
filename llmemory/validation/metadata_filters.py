"""Metadata filters as users write them, read into a tree of conditions. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NoReturn

from llmemory.settings import Settings
from llmemory.validation.filters import (
    EVERYTHING,
    Comparison,
    Condition,
    Kind,
    MetadataFilter,
    at_once,
    joined,
    leaf,
    negated,
)
from llmemory.validation.metadata import plain_mapping, refuse

__all__ = ["OPERATORS", "checked_metadata_filter"]

NAME = "metadata_filter"
OPERATORS = "$eq $ne $gt $gte $lt $lte $in $nin $exists $contains $and $or $not".split()
ORDERINGS: dict[str, Comparison] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
MOST_DIGITS = 400
# Looking up more values in the index takes longer than reading the documents of most owners.
MOST_LOOKUPS = 100


def checked_metadata_filter(value: object, settings: Settings) -> MetadataFilter:
    """Return `value`, a mapping as users write it, as a tree.

    Raises:
        ValidationError: It is no mapping, an operator is unknown or has a value it cannot take,
            or it is too large, too deep or has more conditions than ``max_filter_conditions``.
    """
    if value is None:
        return EVERYTHING
    plain = plain_mapping(value, settings, NAME, kept=(date, Decimal))
    found = _documents(plain)
    if (count := len(found.operands)) > settings.max_filter_conditions:
        refuse(
            NAME,
            f"has {count} conditions, more than max_filter_conditions = "
            f"{settings.max_filter_conditions}; many values of one key are one $in",
        )
    return at_once(found.shape, iter(found.operands))


def _documents(given: dict[str, Any]) -> MetadataFilter:
    """Read a filter of whole documents: keys with what their values must be."""
    parts = []
    for key, value in given.items():
        if key in {"$and", "$or", "$not"}:
            parts.append(_combined(key, value, _documents))
        elif key in OPERATORS:
            refuse(NAME, f'has {key} in the place of a key; write {{"key": {{"{key}": ...}}}}')
        elif key.startswith("$"):
            _refuse_unknown()
        else:
            parts.append(_value((key,), value))
    return joined("and", parts)


def _value(path: tuple[str, ...], given: Any) -> MetadataFilter:
    """Read what the value at `path` must be: operators, conditions on what is in it, or equal."""
    if not _has_operators(given):
        return _equal(path, [given])
    if isinstance(given, list):
        refuse(NAME, "has an operator within a list; to compare with such a list use $eq")
    operators = [key for key in given if key.startswith("$")]
    if not operators:
        return joined("and", [_value((*path, key), value) for key, value in given.items()])
    if len(operators) < len(given):
        refuse(NAME, "mixes operators and keys in one object; join two filters by $and")
    return _operators(path, given)


def _operators(path: tuple[str, ...], given: dict[str, Any]) -> MetadataFilter:
    if not given or not all(key.startswith("$") for key in given):
        refuse(NAME, "has a key with $and, $or or $not that do not hold objects of operators")
    return joined("and", [_operator(path, key, value) for key, value in given.items()])


def _operator(path: tuple[str, ...], name: str, value: Any) -> MetadataFilter:
    match name:
        case "$and" | "$or" | "$not":
            return _combined(name, value, lambda part: _operators(path, part))
        case "$eq":
            return _equal(path, [value])
        case "$ne":
            return negated(_equal(path, [value]))
        case "$in" | "$nin":
            if not isinstance(value, list):
                refuse(NAME, f"needs a list of values for {name}")
            return _equal(path, value) if name == "$in" else negated(_equal(path, value))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return _ordered(path, name, value)
        case "$exists":
            if not isinstance(value, bool):
                refuse(NAME, "needs True or False for $exists")
            found = leaf(Condition("exists", depth=len(path)), path)
            return found if value else negated(found)
        case "$contains":
            # Of a list, an object may also be one of the values.
            wanted = [value] if isinstance(value, list) else [[value]]
            return _holds(path, [*wanted, value] if isinstance(value, dict) else wanted)
    _refuse_unknown()


def _combined(
    name: str, value: Any, read: Callable[[dict[str, Any]], MetadataFilter]
) -> MetadataFilter:
    if name == "$not":
        if not isinstance(value, dict):
            refuse(NAME, "needs an object for $not")
        return negated(read(value))
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        refuse(NAME, f"needs a list of one or more objects for {name}")
    return joined("and" if name == "$and" else "or", [read(part) for part in value])


def _equal(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    """Ask for a value equal to any of `values`."""
    parts = []
    if any(value is None for value in values):
        parts.append(leaf(Condition("missing or null", depth=len(path)), path))
    for kind in ("moment", "day", "decimal"):
        if given := tuple(_text(kind, value) for value in values if _kind(value) == kind):
            parts.append(leaf(Condition("=", kind, len(path), many=True), path, given))
    compared = {"moment", "day", "decimal"}
    plain = [value for value in values if value is not None and _kind(value) not in compared]
    if plain:
        parts.append(_equal_as_json(path, plain))
    return joined("or", parts)


def _equal_as_json(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    many = len(values) > 1
    held = _holds(path, values)
    if not many and not isinstance(values[0], dict | list):
        return held
    # Of a list or an object, containment is less than equality; of many values, it takes a look
    # at each. It narrows down by the index, and the other test decides.
    written = _json(values if many else values[0])
    exactly = leaf(Condition("is", depth=len(path), many=many), path, written)
    return joined("and", [exactly, held]) if len(values) <= MOST_LOOKUPS else exactly


def _ordered(path: tuple[str, ...], name: str, value: Any) -> MetadataFilter:
    kind = _kind(value)
    if kind is None:
        refuse(NAME, f"needs a number, text, Decimal, date or datetime for {name}")
    return leaf(Condition(ORDERINGS[name], kind, len(path)), path, _text(kind, value))


def _holds(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    """Ask for metadata that contains any of `values` at `path`."""
    written = [_json(_nested(path, value)) for value in values]
    many = len(written) > 1
    return leaf(Condition("holds", many=many), (), tuple(written) if many else written[0])


def _kind(value: Any) -> Kind | None:
    match value:
        case bool():
            return None
        case int() | float():
            return "number"
        case str():
            return "text"
        case Decimal():
            return "decimal"
        case datetime():
            return "moment"
        case date():
            return "day"
    return None


def _text(kind: str, value: Any) -> str:
    if kind == "text":
        return str(value)
    if kind == "number":
        return _json(value)
    if kind == "moment":
        return _utc(value).isoformat()
    if kind == "decimal" and max(abs(value.adjusted()), len(value.as_tuple().digits)) > MOST_DIGITS:
        refuse(NAME, f"holds a Decimal of more than {MOST_DIGITS} digits")
    return str(value)


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        # So near the first or last year that its zone leads beyond them.
        nearest = datetime.min if value.year == 1 else datetime.max
        return nearest.replace(tzinfo=UTC)


def _json(value: Any) -> str:
    # Within lists and objects dates are compared as the text they are stored as.
    return json.dumps(value, default=lambda inner: getattr(inner, "isoformat", inner.__str__)())


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _has_operators(value: Any) -> bool:
    if isinstance(value, dict):
        return any(key.startswith("$") or _has_operators(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_has_operators, value))


def _refuse_unknown() -> NoReturn:
    refuse(
        NAME, f"has an unknown operator; a key that begins with $ must be {', '.join(OPERATORS)}"
    )
