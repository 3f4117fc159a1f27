"""Filters: a tree whose shape decides the SQL, beside the values that are bound to it. Pure.

Every operator comes down to a few tests of one metadata value, joined by and, or and not. A test
holds or it does not: there is no third answer for keys that are missing or of another type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from llmemory.settings import Settings
from llmemory.types import DocumentType
from llmemory.validation.metadata import plain_mapping, refuse

__all__ = [
    "EVERYTHING",
    "Comparison",
    "Condition",
    "Filters",
    "Group",
    "Kind",
    "MetadataFilter",
    "Operand",
    "Test",
    "checked_metadata_filter",
]

Kind: TypeAlias = Literal["number", "text", "decimal", "moment", "day"]
"""As what a value is compared."""

Comparison: TypeAlias = Literal["=", "<", "<=", ">", ">="]

Test: TypeAlias = Literal["holds", "is", "missing or null", "exists"] | Comparison
"""What is asked of a value. "holds" asks the whole metadata, by containment."""

NAME = "metadata_filter"
OPERATORS = "$eq $ne $gt $gte $lt $lte $in $nin $exists $contains $and $or $not".split()
ORDERINGS: dict[str, Comparison] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
MOST_DIGITS = 400
# Looking up more values in the index takes longer than reading the documents of most owners.
MOST_LOOKUPS = 100


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of the value at a path.

    Attributes:
        test: What is asked.
        kind: As what the value is compared; None where JSON itself is.
        depth: Keys that lead to the value.
        many: Whether any of a list of values may fit; else there is one.
    """

    test: Test
    kind: Kind | None = None
    depth: int = 0
    many: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions joined: "not" has one part, "and" of none holds always, "or" of none never."""

    operator: Literal["and", "or", "not"]
    parts: tuple[Condition | Group, ...]


class Operand(NamedTuple):
    """What is bound to a condition: the keys of its path, and a text or several."""

    path: tuple[str, ...] = ()
    value: str | tuple[str, ...] | None = None


class MetadataFilter(NamedTuple):
    """A shape, and the operands of its conditions from left to right."""

    shape: Condition | Group
    operands: tuple[Operand, ...] = ()


EVERYTHING = MetadataFilter(Group("and", ()))
NOTHING = MetadataFilter(Group("or", ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions on documents, all of which must hold; None means any.

    Attributes:
        has_index: Whether the index of metadata may serve them. It serves nobody for whom row
            level security hides rows, and asking as the index does takes longer.
    """

    document_type: DocumentType | None = None
    id_at_origin: str | None = None
    date_from: datetime | None = None
    date_to: datetime | None = None
    metadata: MetadataFilter = EVERYTHING
    has_index: bool = True

    def is_empty(self) -> bool:
        """Return whether every document passes."""
        return self == Filters(has_index=self.has_index)


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
    return found


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
    return _joined("and", parts)


def _value(path: tuple[str, ...], given: Any) -> MetadataFilter:
    """Read what the value at `path` must be: operators, conditions on what is in it, or equal."""
    if not _has_operators(given):
        return _equal(path, [given])
    if isinstance(given, list):
        refuse(NAME, "has an operator within a list; to compare with such a list use $eq")
    operators = [key for key in given if key.startswith("$")]
    if not operators:
        return _joined("and", [_value((*path, key), value) for key, value in given.items()])
    if len(operators) < len(given):
        refuse(NAME, "mixes operators and keys in one object; join two filters by $and")
    return _operators(path, given)


def _operators(path: tuple[str, ...], given: dict[str, Any]) -> MetadataFilter:
    if not given or not all(key.startswith("$") for key in given):
        refuse(NAME, "has a key with $and, $or or $not that do not hold objects of operators")
    return _joined("and", [_operator(path, key, value) for key, value in given.items()])


def _operator(path: tuple[str, ...], name: str, value: Any) -> MetadataFilter:
    match name:
        case "$and" | "$or" | "$not":
            return _combined(name, value, lambda part: _operators(path, part))
        case "$eq":
            return _equal(path, [value])
        case "$ne":
            return _not(_equal(path, [value]))
        case "$in" | "$nin":
            if not isinstance(value, list):
                refuse(NAME, f"needs a list of values for {name}")
            return _equal(path, value) if name == "$in" else _not(_equal(path, value))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return _ordered(path, name, value)
        case "$exists":
            if not isinstance(value, bool):
                refuse(NAME, "needs True or False for $exists")
            found = _leaf(Condition("exists", depth=len(path)), path)
            return found if value else _not(found)
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
        return _not(read(value))
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        refuse(NAME, f"needs a list of one or more objects for {name}")
    return _joined("and" if name == "$and" else "or", [read(part) for part in value])


def _equal(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    """Ask for a value equal to any of `values`."""
    parts = []
    if any(value is None for value in values):
        parts.append(_leaf(Condition("missing or null", depth=len(path)), path))
    for kind in ("moment", "day", "decimal"):
        if given := tuple(_text(kind, value) for value in values if _kind(value) == kind):
            parts.append(_leaf(Condition("=", kind, len(path), many=True), path, given))
    compared = {"moment", "day", "decimal"}
    plain = [value for value in values if value is not None and _kind(value) not in compared]
    if plain:
        parts.append(_equal_as_json(path, plain))
    return _joined("or", parts)


def _equal_as_json(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    many = len(values) > 1
    held = _holds(path, values)
    if not many and not isinstance(values[0], dict | list):
        return held
    # Of a list or an object, containment is less than equality; of many values, it takes a look
    # at each. It narrows down by the index, and the other test decides.
    written = _json(values if many else values[0])
    exactly = _leaf(Condition("is", depth=len(path), many=many), path, written)
    return _joined("and", [exactly, held]) if len(values) <= MOST_LOOKUPS else exactly


def _ordered(path: tuple[str, ...], name: str, value: Any) -> MetadataFilter:
    kind = _kind(value)
    if kind is None:
        refuse(NAME, f"needs a number, text, Decimal, date or datetime for {name}")
    return _leaf(Condition(ORDERINGS[name], kind, len(path)), path, _text(kind, value))


def _holds(path: tuple[str, ...], values: Sequence[Any]) -> MetadataFilter:
    """Ask for metadata that contains any of `values` at `path`."""
    written = [_json(_nested(path, value)) for value in values]
    many = len(written) > 1
    return _leaf(Condition("holds", many=many), (), tuple(written) if many else written[0])


def _leaf(
    condition: Condition, path: tuple[str, ...], value: str | tuple[str, ...] | None = None
) -> MetadataFilter:
    return MetadataFilter(condition, (Operand(path, value),))


def _not(part: MetadataFilter) -> MetadataFilter:
    if part in (EVERYTHING, NOTHING):
        return NOTHING if part == EVERYTHING else EVERYTHING
    return MetadataFilter(Group("not", (part.shape,)), part.operands)


def _joined(operator: Literal["and", "or"], parts: Iterable[MetadataFilter]) -> MetadataFilter:
    neutral, deciding = (EVERYTHING, NOTHING) if operator == "and" else (NOTHING, EVERYTHING)
    kept = [part for part in parts if part != neutral]
    if deciding in kept:
        return deciding
    if len(kept) == 1:
        return kept[0]
    operands = tuple(operand for part in kept for operand in part.operands)
    return MetadataFilter(Group(operator, tuple(part.shape for part in kept)), operands)


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
