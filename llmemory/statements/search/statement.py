"""The whole search: arms, fusion, one page of it, and the documents of the hits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Dialect,
    Float,
    Integer,
    Subquery,
    and_,
    bindparam,
    column,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.sql import visitors

from llmemory.concurrency.forks import ProcessLock
from llmemory.models import Tables
from llmemory.recent import Recent
from llmemory.statements import AnySelect
from llmemory.statements.driver_text import DriverText, compiled_for
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.fusion import fused, single
from llmemory.statements.search.highlights import matched_words
from llmemory.statements.search.indexed import near_count, passing_count
from llmemory.statements.search.nearest import counts
from llmemory.statements.search.shape import SearchShape
from llmemory.statements.search.vectors import vector_arm
from llmemory.statements.search.words import text_arm
from llmemory.statements.spaces import state_of
from llmemory.statements.values import read_json
from llmemory.types import SearchType

__all__ = [
    "ROWS_IF_PLANNED",
    "building",
    "page_of",
    "search",
    "search_text",
    "with_context",
    "with_documents",
]

building = ProcessLock()
"""To be held while one is built. Parts of a statement are shared by being cached: built in two
threads at once, it would have some of one thread's and some of the other's, which are not the same
to SQLAlchemy."""

ROWS_IF_PLANNED = 2_000_000
"""Rows that PostgreSQL expects to count if it plans for the values at hand: a cost of 25,000, less
than what it takes to compile a plan."""

MOST_TEXTS = 1024
# By driver and not by dialect: each engine has a dialect of its own.
_texts: Recent[tuple[Any, ...], DriverText] = Recent(MOST_TEXTS)

_LITERALS = frozenset({"owner", "limit", "offset", "pool"})


@lru_cache(maxsize=1024)
def search(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return the search of `shape`.

    Binds ``owner``, ``limit``, ``offset`` and the filters; with a vector arm ``space`` and
    ``embedding`` (the vector as text); with a word arm ``query_text`` and ``language`` if given;
    with both ``alpha``, the vector arm's weight, ``pool``, the hits of each arm, and
    ``candidates``, how many of them are ranked. Where the shape asks for it ``min_score``,
    ``context_window`` and, for highlights, ``query_text``; for all but large owners
    ``rows_if_planned``, ``ROWS_IF_PLANNED``.

    Served by the key of embeddings (vector arm) and by ``ix_chunks_terms`` (word arm), then by the
    keys of chunks and documents for the hits.
    """
    with building:
        return _built(tables, shape)


def search_text(dialect: Dialect, tables: Tables, shape: SearchShape) -> DriverText:
    """Return the search of `shape` as the driver of `dialect` takes it."""
    key = (dialect.driver, getattr(dialect, "_backslash_escapes", True), tables, shape)
    found = _texts.get(key)
    if found is None:
        statement = search(tables, shape)
        with building:
            found = compiled_for(dialect, statement)
        _texts.put(key, found)
    return found


def _built(tables: Tables, shape: SearchShape) -> AnySelect:
    page = page_of(tables, shape)
    statement = with_documents(tables, page)
    if not shape.is_large:
        # Short of that, the second half would be looked at.
        statement = statement.where(or_(page.c.score.is_not(None), _plan_is_kept()))
    if shape.context:
        statement = with_context(tables, statement)
    if shape.highlight:
        statement = statement.add_columns(matched_words(tables, shape).label("matched_words"))
    if shape.search_type is not SearchType.TEXT:
        statement = _with_state(tables, statement)
    if shape.index is not None and shape.is_narrowed and shape.passing != "many":
        statement = statement.add_columns(passing_count(tables, shape).label("passing"))
    if shape.is_sifted and shape.passing == "unknown":
        passing, total = counts(tables, shape)
        statement = statement.add_columns(passing.label("passing"), total.label("total"))
    if shape.is_probed:
        statement = statement.add_columns(near_count(tables, shape).label("near"))
    return _for_one_owner(statement) if shape.is_large else statement


def _plan_is_kept() -> ColumnElement[bool]:
    """Return what is dear to find out as soon as its parameter is known, and is never asked.

    A statement is planned anew at each call if that promises to be cheaper than a plan for any
    values. Where some owners are large, it does for all others, and takes longer than running it.
    """
    rows = func.generate_series(literal_column("1"), bindparam("rows_if_planned", type_=BigInteger))
    count = select(func.count()).select_from(rows.alias("never")).scalar_subquery()
    return count > literal_column("0")


def page_of(tables: Tables, shape: SearchShape) -> Subquery:
    """Return one page of the hits: which chunks they are, their scores and ranks."""
    if shape.search_type is SearchType.HYBRID:
        found = fused(tables, shape, vector_arm(tables, shape), text_arm(tables, shape))
    elif shape.search_type is SearchType.VECTOR:
        found = single(vector_arm(tables, shape), shape.search_type)
    else:
        found = single(text_arm(tables, shape), shape.search_type)
    if shape.min_score:
        hits = found.subquery("hits_of_any_score")
        found = select(*hits.c).where(hits.c.score >= bindparam("min_score", type_=Float))
    page = found.order_by(column("score").desc(), column("best_rank"), column("chunk_id"))
    page = page.limit(bindparam("limit", type_=BigInteger))
    if shape.search_type is SearchType.HYBRID:
        page = page.offset(bindparam("offset", type_=BigInteger))
    return page.subquery("page")


def _with_state(tables: Tables, statement: AnySelect) -> AnySelect:
    """Add the state of ``space`` to each hit; without hits, there is one row that has only that.

    It is read together with the vectors, which may be about to be dropped.
    """
    space = select(state_of(tables).label("space_state")).subquery("space")
    hits = statement.order_by(None).subquery("hits")
    best_rank = func.least(hits.c.vector_rank, hits.c.text_rank)
    return (
        select(space.c.space_state, *hits.c)
        .select_from(space.outerjoin(hits, true()))
        .order_by(hits.c.score.desc(), best_rank, hits.c.chunk_id)
    )


def _for_one_owner(statement: AnySelect) -> AnySelect:
    """Put the owner and how many hits are wanted into the text of `statement`.

    A plan made for any owner and limit takes the first for small and the second for a tenth of
    what there is, and would read all chunks of a large owner to join some hits with theirs.
    """
    # Traversal knows what it replaced by its address, which must not be given to anything else.
    replaced: list[BindParameter[Any]] = []

    def literal_for(element: object, **options: object) -> BindParameter[Any] | None:
        if isinstance(element, BindParameter) and element.key in _LITERALS:
            replaced.append(bindparam(element.key, type_=element.type, literal_execute=True))
            return replaced[-1]
        return None

    return cast("AnySelect", visitors.replacement_traverse(statement, {}, literal_for))


def with_documents(tables: Tables, page: Subquery) -> AnySelect:
    """Return the hits of a page in order, with their chunks and documents."""
    chunks, documents = tables.chunks, tables.documents
    return (
        select(
            page.c.chunk_id,
            page.c.score,
            page.c.similarity,
            page.c.lexical_score,
            page.c.vector_rank,
            page.c.text_rank,
            chunks.c.content,
            chunks.c.headings,
            chunks.c.position,
            chunks.c.start_offset,
            chunks.c.end_offset,
            documents.c.document_id,
            documents.c.document_name,
            documents.c.document_type,
            read_json(documents.c.metadata, "metadata"),
            documents.c.id_at_origin,
            documents.c.external_id,
            documents.c.document_date,
        )
        .select_from(page)
        .join(chunks, and_(owner_is(chunks), chunks.c.chunk_id == page.c.chunk_id))
        .join(
            documents,
            and_(owner_is(documents), documents.c.document_id == chunks.c.document_id),
        )
        .order_by(page.c.score.desc(), page.c.best_rank, page.c.chunk_id)
    )


def with_context(tables: Tables, statement: AnySelect) -> AnySelect:
    """Add the text from the first to the last of each hit's neighbours, as the document has it.

    Served by ``ix_chunks_owner_id_document_id_position``.
    """
    chunks, neighbours = tables.chunks, tables.chunks.alias("neighbours")
    window = bindparam("context_window", type_=Integer)
    around = (
        select(
            func.min(neighbours.c.start_offset).label("context_start"),
            func.max(neighbours.c.end_offset).label("context_end"),
        )
        .where(
            owner_is(neighbours),
            neighbours.c.document_id == chunks.c.document_id,
            neighbours.c.position.between(chunks.c.position - window, chunks.c.position + window),
        )
        .lateral("around")
    )
    start, end = around.c.context_start, around.c.context_end
    context = func.substr(tables.documents.c.content, start + 1, end - start)
    return statement.add_columns(start, end, context.label("context")).join(around, true())
