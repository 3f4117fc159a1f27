"""What the SQL of a search depends on, and what its parts share."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    Text,
    bindparam,
    case,
    func,
    select,
)

from llmemory.statements import AnySelect
from llmemory.statements.filters import FilterShape
from llmemory.types import SearchType

__all__ = ["SearchShape", "owner_is", "pool", "ranked"]


@dataclass(frozen=True, slots=True)
class SearchShape:
    """What the SQL of a search depends on, all else being bound.

    Attributes:
        search_type: Which arms there are.
        dimensions: Length of the vectors.
        language_given: Whether the query's language is bound, or the owner's languages are used.
        filters: Conditions on the documents.
        has_conditions: Whether the query's words rule passages out.
    """

    search_type: SearchType
    dimensions: int
    language_given: bool
    filters: FilterShape
    has_conditions: bool


def owner_is(table: FromClause) -> ColumnElement[bool]:
    """Return that a row of `table` is the owner's: stands on every table of a search."""
    return table.c.owner_id == bindparam("owner", type_=Text)


def pool(shape: SearchShape) -> ColumnElement[int]:
    """Return how many hits an arm gives: what is fused, or else what is asked for."""
    if shape.search_type is SearchType.HYBRID:
        return bindparam("pool", type_=BigInteger)
    return bindparam("limit", type_=BigInteger) + bindparam("offset", type_=BigInteger)


def ranked(hits: AnySelect, name: str) -> CTE:
    """Add each hit's relative score: 1 for the best value, 0 for that of the last candidate.

    The scale depends on the first ``candidates`` ranks alone, so that it is the same on every
    page of a search, however many hits the page before needed.
    """
    hit = hits.subquery("hits").c
    candidates = bindparam("candidates", type_=Integer)
    highest = func.max(hit.value, type_=Float).over()
    lowest = func.coalesce(
        func.nth_value(hit.value, candidates, type_=Float).over(
            order_by=hit.rank, rows=(None, None)
        ),
        func.min(hit.value, type_=Float).over(),
        type_=Float,
    )
    scaled = func.coalesce(
        (hit.value - lowest) / func.nullif(highest - lowest, 0.0, type_=Float), 1.0, type_=Float
    )
    return select(
        hit.chunk_id,
        hit.value,
        hit.rank,
        highest.label("highest"),
        case((hit.rank > candidates, 0.0), else_=scaled).label("relative"),
    ).cte(name)
