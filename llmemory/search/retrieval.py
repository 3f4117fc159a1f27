"""Running a search: one statement, from a checked request to results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncConnection

from llmemory.database.drivers import fetch, takes_vectors
from llmemory.database.local_settings import local_settings
from llmemory.models import Tables
from llmemory.search.index_use import IndexUse, index_settings, index_use, read_as
from llmemory.search.known_filters import KnownFilters
from llmemory.search.vector_indexes import VectorIndex, VectorIndexes
from llmemory.settings import Settings
from llmemory.spaces import SEARCHED, Space, mismatch, stored_spaces, usable_space
from llmemory.statements import AnySelect
from llmemory.statements.filters import parameters, shape_of
from llmemory.statements.search import (
    EXCLUDED,
    ROWS_IF_PLANNED,
    SearchShape,
    composable,
    search_text,
)
from llmemory.statements.values import json_value
from llmemory.text.highlighting import highlighted
from llmemory.types import HalfVectors, SearchResult, SearchType
from llmemory.validation.searches import SearchRequest

__all__ = ["run_search", "search_select"]

_RESULTS = TypeAdapter(list[SearchResult])
"""All results of a search are made at once, in two thirds of the time."""

_COLUMNS = {
    "start_offset": "start",
    "end_offset": "end",
    **{
        name: name
        for name, field in SearchResult.model_fields.items()
        if field.is_required() and name not in {"start", "end"}
    },
}
"""The columns of a hit, and the fields that they are."""

_FIELDS = tuple(_COLUMNS.values())
_values_of = itemgetter(*_COLUMNS)


async def run_search(
    connection: AsyncConnection,
    tables: Tables,
    request: SearchRequest,
    *,
    space: Space,
    embedding: HalfVectors | None,
    indexes: VectorIndexes,
    settings: Settings,
    local: Mapping[str, str | int],
    past_sqlalchemy: bool,
) -> list[SearchResult]:
    """Return the hits of `request`, best first.

    Args:
        connection: Where to run the statement.
        tables: The schema's tables.
        request: What is searched.
        space: Space of the vectors.
        embedding: The query's vector, shape ``(dimensions,)``; None for a search by words.
        indexes: What is known of the owners' HNSW indexes.
        settings: How many candidates there are, and how the index is searched.
        local: Settings of PostgreSQL that the search needs besides those of its index.
        past_sqlalchemy: Whether nobody else listens to what runs on the connection.

    Raises:
        EmbedderMismatchError: The vectors of the space were dropped.
    """
    index = await indexes.find(connection, request.owner_id, space.space_id)
    filters = indexes.filters
    in_binary = past_sqlalchemy and await takes_vectors(connection)
    shape, values, needed = _prepared(
        request, space, embedding, index, filters, settings, takes_vectors=in_binary
    )
    text, arguments = search_text(connection.dialect, tables, shape).bound(values)
    async with local_settings(connection, {**needed, **local}):
        rows = await fetch(connection, text, arguments, past_sqlalchemy=past_sqlalchemy)
    if rows and not shape.has_conditions:
        if "passing" in rows[0]:
            total = rows[0]["total"] if shape.is_sifted else 0
            passing = rows[0]["passing"]
            filters.put_passing(
                request.owner_id, request.filters, request.query.text, passing, total
            )
        if shape.is_probed:
            near = rows[0]["near"]
            filters.put_near(request.owner_id, request.filters, request.query.text, near)
    if embedding is not None and rows[0]["space_state"] not in SEARCHED:
        spaces = await stored_spaces(connection, tables)
        usable_space(spaces, tables.schema, space.identity)
        raise mismatch(spaces, tables.schema, space.identity)
    # Without hits there is a row nevertheless, of the state.
    found = [row for row in rows if row["chunk_id"] is not None]
    return _RESULTS.validate_python([_result(row, request) for row in found])


def search_select(
    tables: Tables,
    request: SearchRequest,
    *,
    space: Space,
    embedding: HalfVectors | None,
    index: VectorIndex | None,
    filters: KnownFilters,
    settings: Settings,
) -> AnySelect:
    """Return `request` as a Select; the arguments are those of ``run_search``."""
    shape, values, local = _prepared(
        request, space, embedding, index, filters, settings, takes_vectors=False
    )
    if index is not None:
        # The caller's values are bound, and a plan for any values would be another one.
        local = {**local, "plan_cache_mode": "force_custom_plan"}
    return composable(tables, shape, values, local)


class _Prepared(NamedTuple):
    shape: SearchShape
    values: dict[str, Any]
    local_settings: dict[str, str | int]


def _prepared(
    request: SearchRequest,
    space: Space,
    embedding: HalfVectors | None,
    index: VectorIndex | None,
    filters: KnownFilters,
    settings: Settings,
    *,
    takes_vectors: bool,
) -> _Prepared:
    """Return which statement it is, what is bound in it, and the settings that its plan needs."""
    is_large = index is not None
    if embedding is None:
        index = None
    use = None if index is None else _use(request, index, filters, settings)
    shape = _shape(request, space, index, use, is_large=is_large, takes_vectors=takes_vectors)
    if shape.is_sifted:
        known = filters.get(request.owner_id, request.filters)
        hits = _pool(request, request.limit + request.offset, settings)
        shape = replace(shape, passing=read_as(known, hits))
    values: dict[str, Any] = {
        "owner": request.owner_id,
        "limit": request.limit,
        "offset": request.offset,
        "rows_if_planned": ROWS_IF_PLANNED,
        **parameters(request.filters, request.owner_id),
    }
    if embedding is not None:
        values["space"] = space.space_id
        values["embedding"] = embedding if takes_vectors else to_json(embedding.tolist()).decode()
    if request.min_score is not None:
        values["min_score"] = request.min_score
    if request.context_window:
        values["context_window"] = request.context_window
    local: dict[str, str | int] = {}
    if index is not None and use is not None:
        values["owner_literal"] = request.owner_id
        values["space_literal"] = space.space_id
        values["owner_vectors"] = index.vectors
        values["too_many"] = use.too_many
        values["most_hits"] = use.most_hits
        if use.passing != "few":
            is_tried_out = shape.is_narrowed and use.passing == "unknown"
            local = index_settings(use, settings, is_tried_out=is_tried_out)
    if shape.has_conditions:
        required = enumerate(request.query.required, start=1)
        phrases = [(number, phrase) for number, group in required for phrase in group]
        phrases += [(EXCLUDED, phrase) for phrase in request.query.excluded]
        values["phrase_groups"], values["phrases"] = map(list, zip(*phrases, strict=True))
        values["insists"] = not request.query.has_other_words
    if request.search_type is not SearchType.VECTOR:
        values["candidates_by_words"] = settings.candidates_by_words
    if request.search_type is not SearchType.VECTOR or request.highlight:
        values["query_text"] = request.query.text
        if request.language is not None:
            values["language"] = request.language
    if request.search_type is SearchType.HYBRID:
        values["candidates"] = settings.candidates
        values["alpha"] = request.alpha
        values["pool"] = _pool(request, request.limit + request.offset, settings)
    return _Prepared(shape, values, local)


def _use(
    request: SearchRequest, index: VectorIndex, filters: KnownFilters, settings: Settings
) -> IndexUse:
    has_conditions = request.query.has_conditions
    return index_use(
        index,
        hits=_pool(request, request.limit, settings),
        query=request.query.text,
        is_narrowed=has_conditions or not request.filters.is_empty(),
        known=None if has_conditions else filters.get(request.owner_id, request.filters),
        settings=settings,
    )


def _shape(
    request: SearchRequest,
    space: Space,
    index: VectorIndex | None,
    use: IndexUse | None,
    *,
    is_large: bool,
    takes_vectors: bool,
) -> SearchShape:
    return SearchShape(
        search_type=request.search_type,
        dimensions=space.dimensions,
        language_given=request.language is not None,
        filters=shape_of(request.filters),
        has_conditions=request.query.has_conditions,
        min_score=request.min_score is not None,
        context=request.context_window > 0,
        highlight=request.highlight,
        index=None if index is None else index.holds,
        passing="unknown" if use is None else use.passing,
        is_probed=use is not None and use.is_probed,
        is_large=is_large,
        takes_vectors=takes_vectors and request.search_type is not SearchType.TEXT,
    )


def _pool(request: SearchRequest, hits: int, settings: Settings) -> int:
    """Return how many hits an arm gives for `hits` of the search."""
    return max(settings.candidates, hits) if request.search_type is SearchType.HYBRID else hits


def _result(row: Mapping[str, Any], request: SearchRequest) -> dict[str, Any]:
    """Return the fields of a SearchResult."""
    fields = dict(zip(_FIELDS, _values_of(row), strict=True))
    fields["chunk_id"] = str(fields["chunk_id"])
    fields["document_id"] = str(fields["document_id"])
    fields["metadata"] = json_value(fields["metadata"])
    # Rounding errors of the fusion must not leave the range.
    fields["score"] = min(max(fields["score"], 0.0), 1.0)
    if request.context_window:
        fields |= {name: row[name] for name in ("context", "context_start", "context_end")}
    if request.highlight:
        fields["highlight"] = highlighted(
            row["content"], row["matched_words"] or (), request.query.text
        )
    return fields
