"""Which chunks are scored by the query's words, of all that have one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Float,
    FromClause,
    Integer,
    and_,
    bindparam,
    case,
    column,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    type_coerce,
    union_all,
)

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.filters import conditions
from llmemory.statements.functions import lexical_of, terms_of
from llmemory.statements.parameters import owner_is
from llmemory.statements.search.narrowing import (
    FENCE,
    SAMPLE,
    document_passes,
    passes,
    sample_of,
)
from llmemory.statements.search.query_terms import meets_conditions
from llmemory.statements.search.rarity import keys_by_rarity, query_weights, term_counts
from llmemory.statements.search.shape import SearchShape, first_pool, pool, whole

__all__ = ["candidates", "score_of"]

ENOUGH = 4
"""Of the candidates wanted, the part from which on the rarer terms' chunks are enough."""

MOST_PASSING = 16_384
"""Chunks that a filter leaves, at most, for all of them to be scored."""

PASSING_PER_ROOT = 40
"""The same over the root of all chunks. To score more takes longer than to look for enough that
pass among those with a common term: the fewer pass, the more have to be asked."""


def candidates(tables: Tables, shape: SearchShape) -> CTE:
    """Return scored chunks: those with the query's rarer terms, then some with others.

    What a common term alone would add is many chunks with low scores. So terms are taken from the
    rarest on, as long as they promise no more than ``candidates_by_words`` chunks; the others only
    add to scores. Where the rarer ones find few, the next one gives some of its chunks, and all
    terms do where even that, with a filter, does not fill the first page. If the filter is what
    leaves few, all that it leaves are scored instead.

    All pages have the same candidates, in order of their scores. What pages deeper than that need
    is ``is_beyond`` them: the best of all other chunks with one of the terms.
    """
    chunks = tables.chunks
    keys = keys_by_rarity(term_counts(tables, shape))
    rare, following, every, is_common = (
        select(key).scalar_subquery()
        for key in (keys.c.rare, keys.c.following, keys.c.every, keys.c.is_common)
    )
    wanted = bindparam("candidates_by_words", type_=Integer)
    is_rare, is_following = terms_of(chunks).overlap(rare), terms_of(chunks).contains(following)
    few = _few(tables, shape, every) if shape.has_filters else None

    def are_few_if(condition: ColumnElement[bool]) -> ColumnElement[bool]:
        # How many pass is found out only where that matters.
        return false() if few is None else case((condition, few.are_all), else_=false())

    found = (
        _scored(tables, shape, is_rare, not_(are_few_if(is_common)))
        .limit(wanted * 5)
        .cte("rare_candidates")
        .prefix_with("MATERIALIZED")
    )
    is_short = _are_fewer(func.greatest(wanted / ENOUGH, first_pool(shape)), found)
    are_all = are_few_if(is_short)
    is_everywhere = select(keys.c.is_everywhere).scalar_subquery()
    looked_up = _scored(tables, shape, is_short, not_(are_all), is_following, not_(is_rare))
    if shape.is_narrowed:
        more: Any = looked_up.limit(wanted)
    else:
        met = _met(tables, shape, following, rare).where(is_short, is_everywhere)
        more = union_all(
            whole(looked_up.where(not_(is_everywhere)).limit(wanted)), whole(met.limit(wanted))
        )
    others = more.cte("following_candidates").prefix_with("MATERIALIZED")
    known = union_all(select(found.c.chunk_id), select(others.c.chunk_id))
    rest = (
        _scored(
            tables,
            shape,
            _are_fewer(pool(shape), found, others),
            not_(are_all),
            terms_of(chunks).overlap(every),
            chunks.c.chunk_id.not_in(known),
        )
        .order_by(column("lexical_score").desc(), column("chunk_id"))
        .limit(pool(shape))
    )
    fill_a_page = not_(_are_fewer(first_pool(shape), found, others))
    parts = [
        _placed(found, false()).where(not_(are_all)),
        _placed(others, false()),
        whole(_placed(rest.subquery("rest"), fill_a_page)),
    ]
    if few is not None:
        scored = _placed(few.scored, false())
        parts.append(scored.where(few.scored.c.lexical_score.is_not(None), are_all))
    return union_all(*parts).cte("candidates")


def score_of(tables: Tables, shape: SearchShape, rows: FromClause) -> ColumnElement[Any]:
    """Return the BM25 score of the chunks `rows`."""
    weights = select(query_weights(tables, shape).c.weights).scalar_subquery()
    # pgvector's operator gives the negative inner product.
    return type_coerce(-lexical_of(rows).max_inner_product(weights), Float)


def _scored(tables: Tables, shape: SearchShape, *wanted: ColumnElement[bool]) -> AnySelect:
    """Return chunk_id and lexical_score of the chunks that are wanted and pass."""
    chunks = tables.chunks
    rows: FromClause = chunks
    if shape.has_conditions:
        wanted = (*wanted, meets_conditions(tables, shape))
    wanted = (owner_is(chunks), *wanted)
    if shape.has_filters:
        # Fenced, so that no other index is read to have the filter asked of fewer.
        columns = (chunks.c.chunk_id, chunks.c.document_id, chunks.c.words)
        rows = select(*columns).where(*wanted).offset(FENCE).subquery("wanted")
        wanted = (document_passes(tables, shape, rows),)
    score = score_of(tables, shape, rows).label("lexical_score")
    return select(rows.c.chunk_id, score).where(*wanted)


def _placed(rows: FromClause, is_beyond: ColumnElement[bool]) -> AnySelect:
    return select(rows.c.chunk_id, rows.c.lexical_score, is_beyond.label("is_beyond"))


def _are_fewer(enough: ColumnElement[int], *parts: CTE) -> ColumnElement[bool]:
    counts = [select(func.count()).select_from(part).scalar_subquery() for part in parts]
    return sum(counts[1:], counts[0]) < enough


def _met(
    tables: Tables, shape: SearchShape, key: ColumnElement[Any], rare: ColumnElement[Any]
) -> AnySelect:
    """Return scored chunks with a term that most have, the newest first: none is looked up."""
    chunks = tables.chunks
    newest = (
        select(chunks.c.chunk_id, chunks.c.words)
        .where(owner_is(chunks))
        .order_by(chunks.c.chunk_id.desc())
        .offset(FENCE)
        .subquery("newest")
    )
    score = score_of(tables, shape, newest)
    return select(newest.c.chunk_id, score.label("lexical_score")).where(
        terms_of(newest).contains(key), not_(terms_of(newest).overlap(rare))
    )


class _Few(NamedTuple):
    """What a filter leaves, scored, and whether that is all of it and few enough."""

    scored: CTE
    are_all: ColumnElement[bool]


def _few(tables: Tables, shape: SearchShape, keys: ColumnElement[Any]) -> _Few:
    """Return what the filters leave, unless a sample says that it is much.

    Those without any of the terms have no score.
    """
    chunks, documents = tables.chunks, tables.documents
    filtered = replace(shape, has_conditions=False)
    total = select(func.max(term_counts(tables, shape).c.total)).scalar_subquery()
    most = func.least(MOST_PASSING, PASSING_PER_ROOT * func.sqrt(total))
    sample = sample_of(tables)
    guessed = (
        select(func.count() * total / SAMPLE)
        .select_from(sample)
        .where(passes(tables, filtered, sample))
        .scalar_subquery()
    )
    guess = (
        select(most.label("most"), or_(total < most, guessed < most).label("seem_few"))
        .cte("passing_guess")
        .prefix_with("MATERIALIZED")
    )
    has_any = terms_of(chunks).overlap(keys)
    if shape.has_conditions:
        has_any = and_(has_any, meets_conditions(tables, shape))
    score = case((has_any, score_of(tables, shape, chunks))).label("lexical_score")
    # Fenced: with the limit in sight, the planner would rather read all documents.
    passing = (
        select(documents.c.document_id)
        .where(owner_is(documents), *conditions(documents, shape.filters, leave_few=True))
        .where(select(guess.c.seem_few).scalar_subquery())
        .offset(FENCE)
        .subquery("passing")
    )
    theirs = (
        select(chunks.c.chunk_id, score)
        .where(owner_is(chunks), chunks.c.document_id == passing.c.document_id)
        .correlate(passing)
        .offset(FENCE)
        .lateral("theirs")
    )
    scored = (
        select(theirs.c.chunk_id, theirs.c.lexical_score)
        .select_from(passing.join(theirs, true()))
        .limit(literal_column(str(MOST_PASSING)))
        .cte("passing_chunks")
        .prefix_with("MATERIALIZED")
    )
    count = select(func.count()).select_from(scored).scalar_subquery()
    are_all = (
        select(case((guess.c.seem_few, count < guess.c.most), else_=false()).label("are_all"))
        .cte("passing_few")
        .prefix_with("MATERIALIZED")
    )
    return _Few(scored, select(are_all.c.are_all).scalar_subquery())
