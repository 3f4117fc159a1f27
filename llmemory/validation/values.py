"""Single values that callers pass: text, ids, numbers, moments, one of several names. Pure.

One rule for characters everywhere: NUL and lone surrogates, which PostgreSQL cannot hold, are
refused, never cleaned away.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from datetime import UTC, date, datetime, time
from numbers import Integral
from typing import TypeVar
from uuid import UUID

from llmemory.errors import DocumentNotFoundError
from llmemory.settings import Settings
from llmemory.text.languages import LANGUAGES, language_named
from llmemory.types import DocumentType, SearchType
from llmemory.validation.metadata import (
    check_characters,
    integer_text,
    is_blank,
    plain_text,
    refuse,
)

__all__ = [
    "checked_choice",
    "checked_count",
    "checked_document_ids",
    "checked_external_ids",
    "checked_fraction",
    "checked_identifier",
    "checked_integer",
    "checked_language",
    "checked_moment",
    "checked_text",
    "document_uuid",
    "optional_identifier",
]

# A time zone moves a moment by less than a day; nearer to the ends, drivers cannot give it back.
FIRST_MOMENT = datetime(1, 1, 2, tzinfo=UTC)
LAST_MOMENT = datetime(9999, 12, 30, tzinfo=UTC)

Choice = TypeVar("Choice", DocumentType, SearchType)


def checked_text(value: object, name: str, longest: int | None = None) -> str:
    """Return `value` if it is text that PostgreSQL can hold and more than white space.

    Raises:
        ValidationError: It is no text, blank, longer than `longest` characters, or holds a NUL
            character or a lone surrogate.
    """
    if not isinstance(value, str):
        refuse(name, f"must be text, not {type(value).__name__}")
    value = plain_text(value)
    if is_blank(value):
        refuse(name, "must not be empty or blank")
    if longest is not None and len(value) > longest:
        refuse(name, f"has {len(value)} characters, more than {longest}")
    check_characters(value, name)
    return value


def checked_identifier(value: object, name: str, settings: Settings) -> str:
    """Return an id as text; int and UUID are taken as well.

    Raises:
        ValidationError: It is of another type, blank, or longer than ``max_id_bytes``.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        problem = f"more than max_id_bytes = {settings.max_id_bytes}"
        value = integer_text(value, name, settings.max_id_bytes, problem)
    elif isinstance(value, UUID):
        value = str(value)
    if not isinstance(value, str):
        refuse(name, f"must be text, int or UUID, not {type(value).__name__}")
    text = checked_text(value, name)
    if (size := len(text.encode())) > settings.max_id_bytes:
        refuse(name, f"has {size} bytes, more than max_id_bytes = {settings.max_id_bytes}")
    return text


def optional_identifier(value: object, name: str, settings: Settings) -> str | None:
    """Return an id as `checked_identifier` does, or None for None."""
    return None if value is None else checked_identifier(value, name, settings)


def document_uuid(value: object) -> UUID:
    """Return a document's id as a UUID.

    Raises:
        ValidationError: It is neither text nor a UUID.
        DocumentNotFoundError: It is text that no document has as its id.
    """
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str):
        refuse("document_id", f"must be text or a UUID, not {type(value).__name__}")
    try:
        return UUID(value)
    except ValueError:
        raise DocumentNotFoundError(
            "No document has this id; ids come from add_document and list_documents.",
            document_id=value[:100],
        ) from None


def checked_document_ids(values: object) -> list[UUID] | None:
    """Return documents' ids, without those that no document can have."""
    found = []
    for value in _sequence(values, "document_ids") or ():
        try:
            found.append(document_uuid(value))
        except DocumentNotFoundError:
            continue
    return None if values is None else found


def checked_external_ids(values: object, settings: Settings) -> list[str] | None:
    """Return documents' external ids as text."""
    given = _sequence(values, "external_ids")
    if given is None:
        return None
    return [checked_identifier(value, "external_ids", settings) for value in given]


def _sequence(values: object, name: str) -> list[object] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence | Set) or isinstance(values, str | bytes):
        refuse(name, f"must be a list of ids, not {type(values).__name__}")
    return list(values)


def checked_integer(value: object, name: str) -> int:
    """Return `value` if it is an integer, and no boolean."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(name, f"must be an integer, not {type(value).__name__}")
    return int(value)


def checked_fraction(value: object, name: str) -> float:
    """Return `value` if it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        refuse(name, "must be a number from 0 to 1")
    return float(value)


def checked_count(value: object, name: str) -> int:
    """Return `value` if it is an integer of 1 or more.

    Raises:
        ValidationError: It is not.
    """
    count = checked_integer(value, name)
    if count < 1:
        refuse(name, f"must be 1 or more, not {count}")
    return count


def checked_choice(value: object, choices: type[Choice], name: str) -> Choice:
    """Return the member of `choices` that `value` is or names."""
    # Refused outside the handler: the enumeration's own error would carry the value along.
    choice = None
    if isinstance(value, str):
        with suppress(ValueError):
            choice = choices(plain_text(value))
    if choice is None:
        refuse(name, f"must be one of {', '.join(choices)}")
    return choice


def checked_language(value: object, *others: str) -> str | None:
    """Return the language that `value` names: one of ours or of `others`, or None for None.

    Raises:
        ValidationError: It names none.
    """
    if value is None:
        return None
    language = None
    if isinstance(value, str):
        name = plain_text(value).strip().lower()
        language = name if name in others else language_named(name)
    if language is None:
        refuse("language", f"must be one of {', '.join((*others, *LANGUAGES))}")
    return language


def checked_moment(value: object, name: str, *, end_of_day: bool = False) -> datetime | None:
    """Return a moment in UTC; a day becomes its first moment, or its last if `end_of_day`."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _parsed_moment(value)
        if value is None:
            refuse(name, "must be a datetime, a date or ISO 8601 text such as 2025-01-31T09:30")
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time.max if end_of_day else time.min)
    if not isinstance(value, datetime):
        refuse(name, f"must be a datetime, a date or ISO 8601 text, not {type(value).__name__}")
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return min(max(value, FIRST_MOMENT), LAST_MOMENT).astimezone(UTC)


def _parsed_moment(value: str) -> date | None:
    for parse in (date.fromisoformat, datetime.fromisoformat):
        with suppress(ValueError):
            return parse(value)
    return None
