"""Checking what callers pass, before anything is embedded or stored. Pure.

One rule for characters everywhere: NUL and lone surrogates, which PostgreSQL cannot hold, are
refused, never cleaned away.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from llmemory.errors import DocumentNotFoundError, ValidationError
from llmemory.queries import Query, parsed_query
from llmemory.settings import LANGUAGES, Settings
from llmemory.types import DocumentType, NewDocument, SearchType

__all__ = [
    "CheckedDocument",
    "Filters",
    "SearchRequest",
    "checked_document",
    "checked_document_ids",
    "checked_external_ids",
    "checked_filters",
    "checked_identifier",
    "checked_metadata",
    "checked_page",
    "checked_search",
    "checked_text",
    "document_uuid",
]

NAMELESS_EMAIL = "(no subject)"
MAX_OFFSET = 2**62
MOST_DIGITS = 400
# A time zone moves a moment by less than a day; nearer to the ends, drivers cannot give it back.
FIRST_MOMENT = datetime(1, 1, 2, tzinfo=UTC)
LAST_MOMENT = datetime(9999, 12, 30, tzinfo=UTC)

Choice = TypeVar("Choice", DocumentType, SearchType)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedDocument:
    """A document that may be stored: every value valid and in its stored form."""

    owner_id: str
    document_name: str
    document_type: DocumentType
    content: str
    content_hash: bytes
    id_at_origin: str | None
    external_id: str | None
    metadata: dict[str, Any]
    document_date: datetime | None
    language: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions on documents, all of which must hold; None means any."""

    document_type: DocumentType | None = None
    id_at_origin: str | None = None
    date_from: datetime | None = None
    date_to: datetime | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Return whether every document passes."""
        return self == Filters()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """A search that may be run."""

    owner_id: str
    query: Query
    search_type: SearchType
    limit: int
    offset: int
    alpha: float
    language: str | None
    filters: Filters


def checked_document(
    document: NewDocument | Mapping[str, Any], settings: Settings
) -> CheckedDocument:
    """Return `document` in its stored form.

    Raises:
        ValidationError: A value is missing, of the wrong type, empty, too long or not storable.
    """
    if isinstance(document, NewDocument):
        document = {name: getattr(document, name) for name in NewDocument.model_fields}
    elif not isinstance(document, Mapping):
        _refuse("document", "must be a NewDocument or a mapping of add_document's arguments")
    unknown = set(document) - set(NewDocument.model_fields)
    if unknown:
        _refuse("document", f"has unknown arguments: {', '.join(sorted(map(str, unknown)))}")
    document_type = _choice(
        document.get("document_type", DocumentType.GENERAL), DocumentType, "document_type"
    )
    content = checked_text(document.get("content"), "content")
    encoded = content.encode()
    if len(encoded) > settings.max_content_bytes:
        _refuse(
            "content",
            f"has {len(encoded)} bytes, more than max_content_bytes = "
            f"{settings.max_content_bytes}; split it or raise the setting",
        )
    name = document.get("document_name")
    if document_type is DocumentType.EMAIL and (
        name is None or (isinstance(name, str) and not name.strip())
    ):
        name = NAMELESS_EMAIL
    return CheckedDocument(
        owner_id=checked_identifier(document.get("owner_id"), "owner_id", settings),
        document_name=checked_text(name, "document_name", settings.max_name_length),
        document_type=document_type,
        content=content,
        content_hash=hashlib.sha256(encoded).digest(),
        id_at_origin=_optional_identifier(document.get("id_at_origin"), "id_at_origin", settings),
        external_id=_optional_identifier(document.get("external_id"), "external_id", settings),
        metadata=checked_metadata(document.get("additional_metadata"), settings),
        document_date=_document_date(document.get("document_date")),
        language=_language(document.get("language")) or settings.language,
    )


def checked_search(
    *,
    owner_id: object,
    query_text: object,
    search_type: object,
    limit: object,
    offset: object,
    alpha: object,
    language: object,
    filters: Filters,
    settings: Settings,
) -> SearchRequest:
    """Return the search if it may be run.

    Raises:
        ValidationError: A value is of the wrong type or out of range.
    """
    checked_limit, checked_offset = checked_page(limit, offset, settings)
    kind = _choice(search_type, SearchType, "search_type")
    weight = _fraction(alpha, "alpha")
    if kind is SearchType.HYBRID and weight in {0.0, 1.0}:
        # An arm without weight need not run.
        kind = SearchType.VECTOR if weight == 1.0 else SearchType.TEXT
    text = checked_text(query_text, "query_text", settings.max_query_length)
    return SearchRequest(
        owner_id=checked_identifier(owner_id, "owner_id", settings),
        query=Query(text) if kind is SearchType.VECTOR else parsed_query(text),
        search_type=kind,
        limit=checked_limit,
        offset=checked_offset,
        alpha=weight,
        language=_language(language),
        filters=filters,
    )


def checked_filters(
    settings: Settings,
    *,
    metadata_filter: object = None,
    document_type: object = None,
    id_at_origin: object = None,
    date_from: object = None,
    date_to: object = None,
) -> Filters:
    """Return the conditions if they make sense.

    Raises:
        ValidationError: A value is of the wrong type, an operator is unknown, or the range of
            dates is empty.
    """
    metadata = checked_metadata(metadata_filter, settings, "metadata_filter")
    for key, value in metadata.items():
        for name in (key, *(value if isinstance(value, dict) else ())):
            if name.startswith("$"):
                _refuse("metadata_filter", "has an unknown operator: a key that begins with $")
    first = _moment(date_from, "date_from")
    last = _moment(date_to, "date_to", end_of_day=True)
    if first is not None and last is not None and first > last:
        _refuse("date_from", "is later than date_to")
    return Filters(
        document_type=(
            None if document_type is None else _choice(document_type, DocumentType, "document_type")
        ),
        id_at_origin=_optional_identifier(id_at_origin, "id_at_origin", settings),
        date_from=first,
        date_to=last,
        metadata=metadata,
    )


def checked_page(limit: object, offset: object, settings: Settings) -> tuple[int, int]:
    """Return limit and offset if they are in range.

    Raises:
        ValidationError: The limit is not 1 to ``max_limit``, or the offset is negative.
    """
    limit, offset = _integer(limit, "limit"), _integer(offset, "offset")
    if not 1 <= limit <= settings.max_limit:
        _refuse("limit", f"must be 1 to {settings.max_limit} (max_limit), not {limit}")
    if not 0 <= offset <= MAX_OFFSET:
        _refuse("offset", f"must be 0 or more, and at most {MAX_OFFSET}")
    return limit, offset


def checked_text(value: object, name: str, longest: int | None = None) -> str:
    """Return `value` if it is text that PostgreSQL can hold and more than white space.

    Raises:
        ValidationError: It is no text, blank, longer than `longest` characters, or holds a NUL
            character or a lone surrogate.
    """
    if not isinstance(value, str):
        _refuse(name, f"must be text, not {type(value).__name__}")
    value = _plain_text(value)
    if not value or value.isspace():
        _refuse(name, "must not be empty or blank")
    if longest is not None and len(value) > longest:
        _refuse(name, f"has {len(value)} characters, more than {longest}")
    _check_characters(value, name)
    return value


def checked_identifier(value: object, name: str, settings: Settings) -> str:
    """Return an id as text; int and UUID are taken as well.

    Raises:
        ValidationError: It is of another type, blank, or longer than ``max_id_bytes``.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        problem = f"more than max_id_bytes = {settings.max_id_bytes}"
        value = _integer_text(value, name, settings.max_id_bytes, problem)
    elif isinstance(value, UUID):
        value = str(value)
    if not isinstance(value, str):
        _refuse(name, f"must be text, int or UUID, not {type(value).__name__}")
    text = checked_text(value, name)
    if (size := len(text.encode())) > settings.max_id_bytes:
        _refuse(name, f"has {size} bytes, more than max_id_bytes = {settings.max_id_bytes}")
    return text


def document_uuid(value: object) -> UUID:
    """Return a document's id as a UUID.

    Raises:
        ValidationError: It is neither text nor a UUID.
        DocumentNotFoundError: It is text that no document has as its id.
    """
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str):
        _refuse("document_id", f"must be text or a UUID, not {type(value).__name__}")
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
        _refuse(name, f"must be a list of ids, not {type(values).__name__}")
    return list(values)


def checked_metadata(
    value: object, settings: Settings, name: str = "additional_metadata"
) -> dict[str, Any]:
    """Return metadata as plain JSON values: datetime, date, UUID and Decimal become ISO text.

    Raises:
        ValidationError: It is no mapping, holds something else than JSON has, is nested deeper
            than ``max_metadata_depth`` or larger than ``max_metadata_bytes``.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _refuse(name, f"must be a mapping, not {type(value).__name__}")
    plain: dict[str, Any] = _Plain(name, settings).value(value, settings.max_metadata_depth)
    size = len(json.dumps(plain, ensure_ascii=False).encode())
    if size > settings.max_metadata_bytes:
        _refuse(
            name, f"has {size} bytes, more than max_metadata_bytes = {settings.max_metadata_bytes}"
        )
    return plain


class _Plain:
    """Turns metadata into plain JSON values, stopping as soon as it must be too large."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._longest = settings.max_metadata_bytes
        self._values_left = settings.max_metadata_bytes

    def value(self, value: object, depth: int) -> Any:
        # Every value takes a byte of JSON at least; a list may hold itself many times over.
        self._values_left -= 1
        if self._values_left < 0:
            _refuse(self._name, f"is larger than max_metadata_bytes = {self._longest}")
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, Mapping | list | tuple):
            if depth == 0:
                _refuse(self._name, "is nested deeper than max_metadata_depth")
            if isinstance(value, Mapping):
                return {self._key(key): self.value(item, depth - 1) for key, item in value.items()}
            return [self.value(item, depth - 1) for item in value]
        return self._scalar(value)

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            _refuse(self._name, f"has a key of type {type(key).__name__}; keys must be text")
        _check_characters(key, self._name)
        return _plain_text(key)

    def _scalar(self, value: object) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            _check_characters(value, self._name)
            return _plain_text(value)
        if isinstance(value, int):
            _integer_text(value, self._name, MOST_DIGITS, "too many for JSON; pass it as text")
            return int(value)
        if isinstance(value, float | Decimal):
            if not math.isfinite(value):
                _refuse(self._name, "holds a number that is not finite, which JSON has no form for")
            return float(value) if isinstance(value, float) else str(value)
        if isinstance(value, datetime | date | time):
            return value.isoformat()
        if isinstance(value, UUID):
            return str(value)
        _refuse(self._name, f"holds a value of type {type(value).__name__}, not one of JSON's")


def _plain_text(value: str) -> str:
    """Return a value of a subclass as the text it stands for."""
    return str(value.value) if isinstance(value, Enum) else str(value)


def _integer_text(value: int, name: str, digits: int, problem: str) -> str:
    # Python itself refuses to write integers of more than some thousand digits.
    if abs(value) >= 10**digits:
        _refuse(name, f"has or holds an integer of more than {digits} digits, {problem}")
    return str(int(value))


def _check_characters(value: str, name: str) -> None:
    if "\0" in value:
        _refuse(name, "holds a NUL character, which PostgreSQL cannot store; remove it first")
    if not _is_encodable(value):
        _refuse(name, "holds a lone surrogate, which is no character; decode the source properly")


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _optional_identifier(value: object, name: str, settings: Settings) -> str | None:
    return None if value is None else checked_identifier(value, name, settings)


def _choice(value: object, choices: type[Choice], name: str) -> Choice:
    # Refused outside the handler: the enumeration's own error would carry the value along.
    choice = None
    if isinstance(value, str):
        with suppress(ValueError):
            choice = choices(_plain_text(value))
    if choice is None:
        _refuse(name, f"must be one of {', '.join(choices)}")
    return choice


def _language(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in LANGUAGES:
        _refuse("language", f"must be one of {', '.join(LANGUAGES)}")
    return value


def _moment(value: object, name: str, *, end_of_day: bool = False) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = _parsed_moment(value)
        if value is None:
            _refuse(name, "must be a datetime, a date or ISO 8601 text such as 2025-01-31T09:30")
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time.max if end_of_day else time.min)
    if not isinstance(value, datetime):
        _refuse(name, f"must be a datetime, a date or ISO 8601 text, not {type(value).__name__}")
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return min(max(value, FIRST_MOMENT), LAST_MOMENT).astimezone(UTC)


def _document_date(value: object) -> datetime | None:
    moment = _moment(value, "document_date")
    if moment in {FIRST_MOMENT, LAST_MOMENT}:
        _refuse(
            "document_date",
            "is too near the first or last year: it must lie between 0001-01-02 and 9999-12-30",
        )
    return moment


def _parsed_moment(value: str) -> date | None:
    for parse in (date.fromisoformat, datetime.fromisoformat):
        with suppress(ValueError):
            return parse(value)
    return None


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(name, f"must be an integer, not {type(value).__name__}")
    return value


def _fraction(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        _refuse(name, "must be a number from 0 to 1")
    return float(value)


def _refuse(name: str, problem: str) -> NoReturn:
    raise ValidationError(f"{name} {problem}.", field=name)
