"""Metadata as plain JSON values, and the characters that any text may hold. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from llmemory.errors import ValidationError
from llmemory.settings import Settings

__all__ = [
    "check_characters",
    "checked_metadata",
    "encoded_parts",
    "integer_text",
    "is_blank",
    "plain_mapping",
    "plain_text",
    "refuse",
]

MOST_DIGITS = 400
PART_CHARACTERS = 100_000
# Blanks that Unicode counts among letters and symbols; a zero width space is a format character.
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def checked_metadata(
    value: object, settings: Settings, name: str = "additional_metadata"
) -> dict[str, Any]:
    """Return metadata as plain JSON values: datetime, date, UUID and Decimal become ISO text.

    Raises:
        ValidationError: It is no mapping, holds something else than JSON has, is nested deeper
            than ``max_metadata_depth`` or larger than ``max_metadata_bytes``.
    """
    return plain_mapping(value, settings, name)


def plain_mapping(
    value: object, settings: Settings, name: str, *, kept: tuple[type, ...] = ()
) -> dict[str, Any]:
    """Return a mapping as plain JSON values, those of the types `kept` as they are.

    Raises:
        ValidationError: As ``checked_metadata``.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(name, f"must be a mapping, not {type(value).__name__}")
    values = _PlainValues(name, settings, kept)
    plain: dict[str, Any] = values.plain(value, settings.max_metadata_depth)
    size = len(json.dumps(plain, ensure_ascii=False, default=str).encode())
    if size > settings.max_metadata_bytes:
        refuse(
            name, f"has {size} bytes, more than max_metadata_bytes = {settings.max_metadata_bytes}"
        )
    return plain


class _PlainValues:
    """Turns metadata into plain JSON values, stopping as soon as it must be too large."""

    def __init__(self, name: str, settings: Settings, kept: tuple[type, ...]) -> None:
        self._name = name
        self._kept = kept
        self._longest = settings.max_metadata_bytes
        self._values_left = settings.max_metadata_bytes

    def plain(self, value: object, depth: int) -> Any:
        """Return `value`, which may hold `depth` levels of lists and mappings, as JSON's."""
        # Every value takes a byte of JSON at least; a list may hold itself many times over.
        self._values_left -= 1
        if self._values_left < 0:
            refuse(self._name, f"is larger than max_metadata_bytes = {self._longest}")
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, Mapping | list | tuple):
            if depth == 0:
                refuse(self._name, "is nested deeper than max_metadata_depth")
            if isinstance(value, Mapping):
                return {self._key(key): self.plain(item, depth - 1) for key, item in value.items()}
            return [self.plain(item, depth - 1) for item in value]
        return self._scalar(value)

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            refuse(self._name, f"has a key of type {type(key).__name__}; keys must be text")
        check_characters(key, self._name)
        return plain_text(key)

    def _scalar(self, value: object) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            check_characters(value, self._name)
            return plain_text(value)
        if isinstance(value, int):
            integer_text(value, self._name, MOST_DIGITS, "too many for JSON; pass it as text")
            return int(value)
        if isinstance(value, float | Decimal):
            # Of a Decimal that signals, math.isfinite raises.
            if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
                refuse(self._name, "holds a number that is not finite, which JSON has no form for")
            if isinstance(value, float):
                return float(value)
            return value if isinstance(value, self._kept) else str(value)
        if isinstance(value, datetime | date | time):
            return value if isinstance(value, self._kept) else value.isoformat()
        if isinstance(value, UUID):
            return str(value)
        refuse(self._name, f"holds a value of type {type(value).__name__}, not one of JSON's")


def plain_text(value: str) -> str:
    """Return a value of a subclass as the text it stands for."""
    return str(value.value) if isinstance(value, Enum) else str(value)


def integer_text(value: int, name: str, digits: int, problem: str) -> str:
    """Return an integer as text if it has at most `digits` digits."""
    # Python itself refuses to write integers of more than some thousand digits.
    if abs(value) >= 10**digits:
        refuse(name, f"has or holds an integer of more than {digits} digits, {problem}")
    return str(int(value))


def check_characters(value: str, name: str) -> None:
    """Refuse text that PostgreSQL cannot hold."""
    if "\0" in value:
        refuse(name, "holds a NUL character, which PostgreSQL cannot store; remove it first")
    if not (value.isascii() or _is_encodable(value)):
        refuse(name, "holds a lone surrogate, which is no character; decode the source properly")


def _is_encodable(value: str) -> bool:
    try:
        for _ in encoded_parts(value):
            pass
    except UnicodeEncodeError:
        return False
    return True


def encoded_parts(text: str) -> Iterator[bytes]:
    """Yield `text` in UTF-8, in parts: a whole copy of a long one would count."""
    for start in range(0, len(text), PART_CHARACTERS):
        yield text[start : start + PART_CHARACTERS].encode()


def is_blank(text: str) -> bool:
    """Return whether nothing of `text` can be seen: white space and characters without a form."""
    return all(
        character.isspace() or character in _FILLERS or unicodedata.category(character) == "Cf"
        for character in text.lstrip()
    )


def refuse(name: str, problem: str) -> NoReturn:
    """Raise the error that the argument `name` has this problem."""
    raise ValidationError(f"{name} {problem}.", field=name)
