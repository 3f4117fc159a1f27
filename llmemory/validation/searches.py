"""Searches and pages that callers ask for: in range and of the right types, or an error. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmemory.settings import Settings
from llmemory.text.queries import Query, parsed_query
from llmemory.types import DocumentType, SearchType
from llmemory.validation.filters import Filters
from llmemory.validation.metadata import refuse
from llmemory.validation.metadata_filters import checked_metadata_filter
from llmemory.validation.values import (
    checked_choice,
    checked_fraction,
    checked_identifier,
    checked_integer,
    checked_language,
    checked_moment,
    checked_text,
    optional_identifier,
)

__all__ = ["SearchRequest", "checked_filters", "checked_page", "checked_search", "weighted"]

MAX_OFFSET = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """A search that may be run.

    Attributes:
        alpha: None is the embedder's to say, once it knows the query.
    """

    owner_id: str
    query: Query
    search_type: SearchType
    limit: int
    offset: int
    alpha: float | None
    language: str | None
    filters: Filters
    min_score: float | None
    context_window: int
    highlight: bool


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
    kind = checked_choice(search_type, SearchType, "search_type")
    weight = None if alpha is None else checked_fraction(alpha, "alpha")
    kind = _needed(kind, weight)
    text = checked_text(query_text, "query_text", settings.max_query_length)
    window = checked_integer(context_window, "context_window")
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
        language=checked_language(language),
        filters=filters,
        min_score=None if min_score is None else checked_fraction(min_score, "min_score"),
        context_window=window,
        highlight=highlight,
    )


def weighted(request: SearchRequest, alpha: float) -> SearchRequest:
    """Return a hybrid search of which the embedder has said how much the vectors weigh."""
    kind = _needed(request.search_type, alpha)
    query = Query(request.query.text) if kind is SearchType.VECTOR else request.query
    return replace(request, alpha=alpha, search_type=kind, query=query)


def _needed(kind: SearchType, alpha: float | None) -> SearchType:
    # An arm without weight need not run.
    if kind is not SearchType.HYBRID or alpha not in {0.0, 1.0}:
        return kind
    return SearchType.VECTOR if alpha == 1.0 else SearchType.TEXT


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
    first = checked_moment(date_from, "date_from")
    last = checked_moment(date_to, "date_to", end_of_day=True)
    if first is not None and last is not None and first > last:
        refuse("date_from", "is later than date_to")
    return Filters(
        document_type=(
            None
            if document_type is None
            else checked_choice(document_type, DocumentType, "document_type")
        ),
        id_at_origin=optional_identifier(id_at_origin, "id_at_origin", settings),
        date_from=first,
        date_to=last,
        metadata=metadata,
        has_index=not settings.row_level_security,
    )


def checked_page(limit: object, offset: object, settings: Settings) -> tuple[int, int]:
    """Return limit and offset if they are in range.

    Raises:
        ValidationError: The limit is not 1 to ``max_limit``, or the offset is negative.
    """
    limit, offset = checked_integer(limit, "limit"), checked_integer(offset, "offset")
    if not 1 <= limit <= settings.max_limit:
        refuse("limit", f"must be 1 to {settings.max_limit} (max_limit), not {limit}")
    if not 0 <= offset <= MAX_OFFSET:
        refuse("offset", f"must be 0 or more, and at most {MAX_OFFSET}")
    return limit, offset
