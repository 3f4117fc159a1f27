"""The owner's nearest vectors, found through the owner's HNSW index."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    SmallInteger,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    literal_column,
    not_,
    select,
    union_all,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.narrowing import SAMPLE, narrowed, passes, sample_of
from llmemory.statements.search.nearest import among, exact, of_query
from llmemory.statements.search.shape import SearchShape, first_pool, pool, whole
from llmemory.statements.vector_indexes import quantized

__all__ = ["NEAREST", "RESCORED", "in_order", "indexed", "near_count", "passing_count"]

NEAREST = 100
"""Chunks around a query, of which it is counted how many a filter leaves."""

RESCORED = 16
"""Candidates by signs for each hit that is wanted; their true distances choose among them."""

LAST = 2**31
"""The run of what an index did not give."""


def indexed(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return chunk_id, distance and run of the nearest vectors, found in the way that suits.

    There are as many hits as ``exact`` has. What a filter leaves is read as a whole while it is
    little, by the filter's own index; else vectors come from the HNSW index, nearest first, until
    enough of them pass. Should it end before that, all are read. Where nobody knows how much a
    filter leaves, the statement finds out, and leaves out the other ways at run time.

    The hits are in the order of run, distance and chunk_id, whatever the page: an index gives
    vectors in runs, each nearest first, of which a later one may begin nearer than the former ends.
    What is read because the index has ended comes after what it gave, unless that does not make
    one page.

    Binds ``owner_literal`` and ``space_literal``, without which a prepared plan could not use the
    index; ``owner_vectors``, about how many there are; ``too_many``, what is not read as a whole;
    ``most_hits``, for how many the index is asked.
    """
    if shape.is_narrowed and shape.passing == "few":
        return _in_run(among(tables, shape, few_that_pass(tables, shape)), 0)
    few = None
    is_few: ColumnElement[bool] = false()
    if shape.is_narrowed and shape.passing == "unknown":
        few = few_that_pass(tables, shape)
        count = select(func.count()).select_from(few).scalar_subquery()
        is_few = and_(_seem_few(tables, shape), count < _too_many())
    through_index = _through_index(tables, shape, is_few)
    given = select(func.count()).select_from(through_index).scalar_subquery()
    makes_a_page = given >= first_pool(shape)
    known = select(through_index.c.chunk_id).where(makes_a_page)
    rest = exact(tables, shape).where(
        not_(is_few), given < pool(shape), tables.embeddings.c.chunk_id.not_in(known)
    )
    ways = [select(*through_index.c).where(makes_a_page), whole(_in_run(rest, LAST))]
    if few is not None:
        ways.append(whole(_in_run(among(tables, shape, few).where(is_few), 0)))
    found = union_all(*ways).subquery("found")
    return select(found).order_by(*in_order(found)).limit(pool(shape))


def in_order(found: FromClause) -> tuple[ColumnElement[Any], ...]:
    """Return what to order the rows of ``indexed`` by."""
    return found.c.run, found.c.distance, found.c.chunk_id


def passing_count(tables: Tables, shape: SearchShape) -> ColumnElement[int]:
    """Return how many chunks pass a filter: counted where they are few, else guessed."""
    count = select(func.count()).select_from(few_that_pass(tables, shape)).scalar_subquery()
    if shape.passing == "few":
        return count
    guess = _guess(tables, shape)
    guessed = select(guess.c.guessed).scalar_subquery()
    return case((select(guess.c.seem_few).scalar_subquery(), count), else_=guessed)


def near_count(tables: Tables, shape: SearchShape) -> ColumnElement[int]:
    """Return how many of the nearest chunks pass."""
    nearest = _by_index(tables, shape).limit(literal_column(str(NEAREST))).subquery("near")
    passing = select(func.count()).select_from(nearest).where(passes(tables, shape, nearest))
    return passing.scalar_subquery()


@lru_cache(maxsize=1024)
def _guess(tables: Tables, shape: SearchShape) -> CTE:
    """Return how many chunks pass as far as a sample tells, and whether that is few."""
    sample = sample_of(tables)
    guessed = func.count() * bindparam("owner_vectors", type_=BigInteger) // SAMPLE
    guess = (
        select(guessed.label("guessed"), (guessed < _too_many()).label("seem_few"))
        .select_from(sample)
        .where(passes(tables, shape, sample))
    )
    return guess.cte("guess").prefix_with("MATERIALIZED")


def _seem_few(tables: Tables, shape: SearchShape) -> ColumnElement[bool]:
    return select(_guess(tables, shape).c.seem_few).scalar_subquery()


@lru_cache(maxsize=1024)
def few_that_pass(tables: Tables, shape: SearchShape) -> CTE:
    """Return the chunks that pass; where it is unknown how many, too many of them at most."""
    chunks = tables.chunks
    statement = select(chunks.c.chunk_id).select_from(chunks)
    passing = narrowed(tables, statement, chunks, shape).where(owner_is(chunks))
    if shape.passing == "unknown":
        passing = passing.where(_seem_few(tables, shape)).limit(_too_many())
    return passing.cte("few").prefix_with("MATERIALIZED")


def _through_index(tables: Tables, shape: SearchShape, is_few: ColumnElement[bool]) -> CTE:
    """Return the nearest vectors as the HNSW index finds them, unless few are to be read."""
    statement = _by_index(tables, shape)
    if shape.is_narrowed:
        statement = statement.where(passes(tables, shape, tables.embeddings))
    if shape.is_narrowed and shape.passing == "unknown":
        statement = statement.where(not_(is_few))
    hits = func.least(pool(shape), _literal("most_hits"), type_=BigInteger)
    if shape.index == "signs":
        found = _in_pages(statement, shape, hits)
    else:
        # The index gives equals in any order: which of them are hits would depend on the page.
        found = _in_runs(statement.fetch(hits, with_ties=True))
    return found.cte("through_index").prefix_with("MATERIALIZED")


def _in_runs(found: AnySelect) -> AnySelect:
    """Add to chunk_id and distance, in the order of an index, which run of it they belong to."""
    given = found.subquery("given")
    former = select(
        given.c.chunk_id,
        given.c.distance,
        func.row_number().over().label("place"),
        func.lag(given.c.distance).over().label("former"),
    ).subquery("former")
    begins = case((former.c.distance < former.c.former, 1), else_=0)
    run = func.sum(begins, type_=Integer).over(order_by=former.c.place)
    return select(former.c.chunk_id, former.c.distance, run.label("run"))


def _in_pages(found: AnySelect, shape: SearchShape, hits: ColumnElement[int]) -> AnySelect:
    """Return chunk_id, distance and run of the candidates that are nearest, page by page.

    The true order is known of as many as were looked at. For each page there are more of them: it
    has the nearest that no page before it had.
    """
    first, limit = first_pool(shape), bindparam("limit", type_=BigInteger)
    pages = func.greatest(func.ceil((hits - first) / cast(limit, Float)), 0)
    most = cast(first + pages * limit, BigInteger) * RESCORED
    given = found.limit(most).subquery("given")
    place = func.row_number().over().label("place")
    candidates = select(given, place).cte("near_by_signs").prefix_with("MATERIALIZED")
    ids = candidates.c.chunk_id

    def nearest_of(places: ColumnElement[Any], count: ColumnElement[Any]) -> AnySelect:
        near = select(ids).where(candidates.c.place <= places * RESCORED)
        return near.order_by(candidates.c.distance, ids).limit(count)

    begin = select(
        func.array(nearest_of(first, first).scalar_subquery(), type_=ARRAY(Uuid)).label("shown"),
        literal_column("0", Integer).label("page"),
    ).cte("pages_before", recursive=True)
    shown, page = begin.c.shown, begin.c.page
    former = func.unnest(shown).column_valued("former")
    more = nearest_of(first + (page + 1) * limit, limit).where(ids.not_in(select(former)))
    more_ids = func.array(more.correlate(begin).scalar_subquery(), type_=ARRAY(Uuid))
    turns = begin.union_all(select(shown.concat(more_ids), page + 1).where(page < pages))
    last = select(turns.c.shown).order_by(turns.c.page.desc()).limit(1).scalar_subquery()
    hit = (
        func.unnest(last)
        .table_valued(column("chunk_id", Uuid), with_ordinality="number", joins_implicitly=True)
        .render_derived("hit")
    )
    run = func.greatest(func.ceil((hit.c.number - first) / cast(limit, Float)), 0)
    return select(
        hit.c.chunk_id, candidates.c.distance, cast(run, BigInteger).label("run")
    ).select_from(hit.join(candidates, ids == hit.c.chunk_id))


def _in_run(found: AnySelect, number: int) -> AnySelect:
    hits = found.subquery("hits")
    return select(
        hits.c.chunk_id, hits.c.distance, literal_column(str(number), BigInteger).label("run")
    )


def _by_index(tables: Tables, shape: SearchShape) -> AnySelect:
    """Return chunk_id and distance of the owner's vectors in the order of the index."""
    embeddings = tables.embeddings
    halves = cast(embeddings.c.embedding, HALFVEC(shape.dimensions))
    distance: ColumnElement[Any] = halves.cosine_distance(of_query(shape))
    order: ColumnElement[Any] = distance
    if shape.index == "signs":
        signs = select(quantized(of_query(shape), shape.dimensions)).scalar_subquery()
        order = quantized(halves, shape.dimensions).hamming_distance(signs)
    return (
        select(embeddings.c.chunk_id, distance.label("distance"))
        .where(
            embeddings.c.owner_id == bindparam("owner_literal", type_=Text, literal_execute=True),
            embeddings.c.space_id
            == bindparam("space_literal", type_=SmallInteger, literal_execute=True),
        )
        .order_by(order)
    )


def _too_many() -> ColumnElement[int]:
    return _literal("too_many")


def _literal(name: str) -> ColumnElement[int]:
    # The planner expects an unknown limit to stop early, and reads the whole table.
    return bindparam(name, type_=Integer, literal_execute=True)
