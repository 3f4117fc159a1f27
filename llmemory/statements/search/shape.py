"""What the SQL of a search depends on, and what its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    bindparam,
    func,
    select,
)

from llmemory.statements import AnySelect
from llmemory.statements.filters import FilterShape
from llmemory.statements.vector_indexes import Held
from llmemory.types import SearchType

__all__ = ["Passing", "SearchShape", "first_pool", "pool", "whole"]

Passing: TypeAlias = Literal["few", "many", "unknown"]
"""How many of an owner's chunks pass a filter, for what reads them."""


@dataclass(frozen=True, slots=True)
class SearchShape:
    """What the SQL of a search depends on, all else being bound.

    Attributes:
        search_type: Which arms there are.
        dimensions: Length of the vectors.
        language_given: Whether the query's language is bound, or the owner's languages are used.
        filters: Conditions on the documents.
        has_conditions: Whether the query's words rule passages out.
        min_score: Whether hits below a score are left out.
        context: Whether the text around each hit is read.
        highlight: Whether the words of each hit that the query has are read.
        index: What the owner's HNSW index holds: vectors in half precision, or their signs. None
            without an index.
        passing: How many chunks are known to pass.
        is_probed: Whether it is counted how many of the nearest chunks pass.
        takes_vectors: Whether the driver is given the query's vector as such, or as text.
        is_large: Whether the owner has so many chunks that its name must stand in the text: a plan
            made for any owner is one for few.
    """

    search_type: SearchType
    dimensions: int
    language_given: bool
    filters: FilterShape
    has_conditions: bool
    min_score: bool = False
    context: bool = False
    highlight: bool = False
    index: Held | None = None
    passing: Passing = "unknown"
    is_probed: bool = False
    takes_vectors: bool = False
    is_large: bool = False

    @property
    def has_filters(self) -> bool:
        """Whether some of the owner's documents may be ruled out."""
        return not self.filters.is_empty()

    @property
    def is_narrowed(self) -> bool:
        """Whether some of the owner's chunks may be ruled out."""
        return self.has_conditions or self.has_filters

    @property
    def is_sifted(self) -> bool:
        """Whether filters alone rule vectors out, and no index finds those that are left."""
        is_read = self.search_type is not SearchType.TEXT and self.index is None
        return is_read and self.has_filters and not self.has_conditions


def pool(shape: SearchShape) -> ColumnElement[int]:
    """Return how many hits an arm gives: what is fused, or else what is asked for."""
    if shape.search_type is SearchType.HYBRID:
        return bindparam("pool", type_=BigInteger)
    return bindparam("limit", type_=BigInteger) + bindparam("offset", type_=BigInteger)


def first_pool(shape: SearchShape) -> ColumnElement[int]:
    """Return how many hits an arm gives where none are skipped."""
    limit = bindparam("limit", type_=BigInteger)
    if shape.search_type is not SearchType.HYBRID:
        return limit
    return func.greatest(bindparam("candidates", type_=Integer), limit, type_=BigInteger)


def whole(statement: AnySelect) -> AnySelect:
    """Return `statement` as a part of a UNION, with the parentheses that its LIMIT needs."""
    # SQLAlchemy leaves them out.
    return select(statement.subquery())
