"""Checking what callers pass, before anything is embedded or stored. Pure.

One rule for characters everywhere: NUL and lone surrogates, which PostgreSQL cannot hold, are
refused, never cleaned away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from numbers import Integral
from typing import Any, TypeVar
from uuid import UUID

from llmemory.errors import DocumentNotFoundError
from llmemory.filters import Filters, checked_metadata_filter
from llmemory.languages import AUTO, LANGUAGES, detected_language
from llmemory.metadata import (
    check_characters,
    checked_metadata,
    encoded_parts,
    integer_text,
    is_blank,
    plain_text,
    refuse,
)
from llmemory.queries import Query, parsed_query
from llmemory.settings import Settings
from llmemory.types import DocumentType, NewDocument, SearchType

__all__ = [
    "CheckedDocument",
    "SearchRequest",
    "checked_count",
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
    min_score: float | None
    context_window: int
    highlight: bool


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
        refuse("document", "must be a NewDocument or a mapping of add_document's arguments")
    unknown = set(document) - set(NewDocument.model_fields)
    if unknown:
        refuse("document", f"has unknown arguments: {', '.join(sorted(map(str, unknown)))}")
    document_type = _choice(
        document.get("document_type", DocumentType.GENERAL), DocumentType, "document_type"
    )
    for key in ("owner_id", "content"):
        if key not in document:
            refuse(key, "is missing: a document needs owner_id, document_name and content")
    content = checked_text(document["content"], "content")
    content_hash, size = _hash_and_size(content)
    if size > settings.max_content_bytes:
        refuse(
            "content",
            f"has {size} bytes, more than max_content_bytes = "
            f"{settings.max_content_bytes}; split it or raise the setting",
        )
    name = document.get("document_name")
    if document_type is DocumentType.EMAIL and (
        name is None or (isinstance(name, str) and is_blank(name))
    ):
        name = NAMELESS_EMAIL
    return CheckedDocument(
        owner_id=checked_identifier(document.get("owner_id"), "owner_id", settings),
        document_name=checked_text(name, "document_name", settings.max_name_length),
        document_type=document_type,
        content=content,
        content_hash=content_hash,
        id_at_origin=_optional_identifier(document.get("id_at_origin"), "id_at_origin", settings),
        external_id=_optional_identifier(document.get("external_id"), "external_id", settings),
        metadata=checked_metadata(document.get("additional_metadata"), settings),
        document_date=_document_date(document.get("document_date")),
        language=_document_language(
            _language(document.get("language"), AUTO) or settings.language, document_type, content
        ),
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
    min_score: object,
    context_window: object,
    highlight: object,
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
    window = _integer(context_window, "context_window")
    if not 0 <= window <= settings.max_context_window:
        most = settings.max_context_window
        refuse("context_window", f"must be 0 to {most} (max_context_window), not {window}")
    if not isinstance(highlight, bool):
        refuse("highlight", f"must be True or False, not {type(highlight).__name__}")
    return SearchRequest(
        owner_id=checked_identifier(owner_id, "owner_id", settings),
        query=Query(text) if kind is SearchType.VECTOR else parsed_query(text),
        search_type=kind,
        limit=checked_limit,
        offset=checked_offset,
        alpha=weight,
        language=_language(language),
        filters=filters,
        min_score=None if min_score is None else _fraction(min_score, "min_score"),
        context_window=window,
        highlight=highlight,
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
    metadata = checked_metadata_filter(metadata_filter, settings)
    first = _moment(date_from, "date_from")
    last = _moment(date_to, "date_to", end_of_day=True)
    if first is not None and last is not None and first > last:
        refuse("date_from", "is later than date_to")
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
        refuse("limit", f"must be 1 to {settings.max_limit} (max_limit), not {limit}")
    if not 0 <= offset <= MAX_OFFSET:
        refuse("offset", f"must be 0 or more, and at most {MAX_OFFSET}")
    return limit, offset


def checked_count(value: object, name: str) -> int:
    """Return `value` if it is an integer of 1 or more.

    Raises:
        ValidationError: It is not.
    """
    count = _integer(value, name)
    if count < 1:
        refuse(name, f"must be 1 or more, not {count}")
    return count


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


def _optional_identifier(value: object, name: str, settings: Settings) -> str | None:
    return None if value is None else checked_identifier(value, name, settings)


def _choice(value: object, choices: type[Choice], name: str) -> Choice:
    # Refused outside the handler: the enumeration's own error would carry the value along.
    choice = None
    if isinstance(value, str):
        with suppress(ValueError):
            choice = choices(plain_text(value))
    if choice is None:
        refuse(name, f"must be one of {', '.join(choices)}")
    return choice


def _hash_and_size(text: str) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    for part in encoded_parts(text):
        digest.update(part)
        size += len(part)
    return digest.digest(), size


def _language(value: object, *others: str) -> str | None:
    if value is None:
        return None
    language = plain_text(value).strip().lower() if isinstance(value, str) else None
    if language not in {*others, *LANGUAGES}:
        refuse("language", f"must be one of {', '.join((*others, *LANGUAGES))}")
    return language


def _document_language(language: str, document_type: DocumentType, content: str) -> str:
    if language != AUTO:
        return language
    # Names and keywords are no language's words.
    return "simple" if document_type is DocumentType.CODE else detected_language(content)


def _moment(value: object, name: str, *, end_of_day: bool = False) -> datetime | None:
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


def _document_date(value: object) -> datetime | None:
    moment = _moment(value, "document_date")
    if moment in {FIRST_MOMENT, LAST_MOMENT}:
        refuse(
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
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(name, f"must be an integer, not {type(value).__name__}")
    return int(value)


def _fraction(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        refuse(name, "must be a number from 0 to 1")
    return float(value)
