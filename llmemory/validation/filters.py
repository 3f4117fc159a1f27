"""Filters: a tree whose shape decides the SQL, beside the values that are bound to it. Pure.

Every operator comes down to a few tests of one metadata value, joined by and, or and not. A test
holds or it does not: there is no third answer for keys that are missing or of another type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from llmemory.types import DocumentType

__all__ = [
    "EVERYTHING",
    "HOLDS",
    "NOTHING",
    "Comparison",
    "Condition",
    "Filters",
    "Group",
    "Kind",
    "MetadataFilter",
    "Operand",
    "Test",
    "at_once",
    "joined",
    "leaf",
    "negated",
]

Kind: TypeAlias = Literal["number", "text", "decimal", "moment", "day"]
"""As what a value is compared."""

Comparison: TypeAlias = Literal["=", "<", "<=", ">", ">="]

Test: TypeAlias = Literal["holds", "is", "missing or null", "exists"] | Comparison
"""What is asked of a value. "holds" asks the whole metadata, by containment."""

_DECODER = json.JSONDecoder()


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
HOLDS = Condition("holds")


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


def leaf(
    condition: Condition, path: tuple[str, ...], value: str | tuple[str, ...] | None = None
) -> MetadataFilter:
    """Return a filter of one condition."""
    return MetadataFilter(condition, (Operand(path, value),))


def negated(part: MetadataFilter) -> MetadataFilter:
    """Return the opposite of `part`."""
    if part in (EVERYTHING, NOTHING):
        return NOTHING if part == EVERYTHING else EVERYTHING
    return MetadataFilter(Group("not", (part.shape,)), part.operands)


def joined(operator: Literal["and", "or"], parts: Iterable[MetadataFilter]) -> MetadataFilter:
    """Return `parts` joined, without those that make no difference."""
    neutral, deciding = (EVERYTHING, NOTHING) if operator == "and" else (NOTHING, EVERYTHING)
    kept = [part for part in parts if part != neutral]
    if deciding in kept:
        return deciding
    if len(kept) == 1:
        return kept[0]
    operands = tuple(operand for part in kept for operand in part.operands)
    return MetadataFilter(Group(operator, tuple(part.shape for part in kept)), operands)


def at_once(shape: Condition | Group, operands: Iterator[Operand]) -> MetadataFilter:
    """Return the filter with values of several keys, all of which must be held, as one condition.

    Args:
        shape: Of the filter, as it was read: each value that must be held has one key.
        operands: Those of the filter.
    """
    if isinstance(shape, Condition):
        return MetadataFilter(shape, (next(operands),))
    match shape.operator:
        case "not":
            return negated(at_once(shape.parts[0], operands))
        case "or":
            return joined("or", [at_once(part, operands) for part in shape.parts])
        case "and":
            return joined("and", _held_at_once(_all_of(shape, operands)))


def _all_of(shape: Group, operands: Iterator[Operand]) -> Iterator[MetadataFilter]:
    for part in shape.parts:
        if isinstance(part, Group) and part.operator == "and":
            yield from _all_of(part, operands)
        else:
            yield at_once(part, operands)


def _held_at_once(parts: Iterable[MetadataFilter]) -> list[MetadataFilter]:
    held: dict[str, str] = {}
    others = []
    for part in parts:
        written = part.operands[0].value if part.shape == HOLDS else None
        key = _DECODER.raw_decode(written, 1)[0] if isinstance(written, str) else None
        if key is None or key in held:
            others.append(part)
        else:
            held[key] = str(written)[1:-1]
    whole = [leaf(HOLDS, (), f"{{{', '.join(held.values())}}}")] if held else []
    return whole + others
