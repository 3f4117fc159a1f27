"""How a search uses its owner's HNSW index, by what is known of the filter."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmemory.search.known_filters import KnownFilter, lies_together
from llmemory.search.vector_indexes import VectorIndex
from llmemory.settings import Settings
from llmemory.statements.search import RESCORED, Passing, seem_few

__all__ = ["IndexUse", "index_settings", "index_use", "read_as", "widened"]

MAX_EF_SEARCH = 1000

NEAR = 100_000
"""Vectors in an index, over the share that passes a filter, for which ``hnsw_ef_search`` does."""

LEAST_SHARE = 0.05
"""Of an owner's chunks, what a filter is thought to leave if it leaves less, or nobody knows."""


class IndexUse(NamedTuple):
    """How an index is used.

    Attributes:
        passing: How many of the owner's chunks pass the filter, for what reads them.
        too_many: How many must pass for the index to find the hits sooner than reading them.
        most_hits: Hits for which the index is asked; those of later pages are read.
        ef_search: How widely the index is searched.
        is_probed: Whether the search looks at what passes around its query as well.
    """

    passing: Passing
    too_many: int
    most_hits: int
    ef_search: int
    is_probed: bool = False


def index_use(
    index: VectorIndex,
    *,
    hits: int,
    query: str,
    is_narrowed: bool,
    known: KnownFilter | None,
    settings: Settings,
) -> IndexUse:
    """Return how to use `index`, which is the same for all pages.

    Args:
        index: The owner's index.
        hits: Hits that the first page needs.
        query: What is searched.
        is_narrowed: Whether some of the owner's chunks may be ruled out.
        known: What is known of what rules them out.
        settings: How the index is searched.
    """
    too_many = _too_many(index, hits, settings)
    narrow = settings.hnsw_ef_search
    most_hits = _most_hits(index, known.passing if known else index.vectors, hits)
    unknown = IndexUse("unknown", too_many, most_hits, narrow)
    if not is_narrowed:
        return unknown
    widest = widened(narrow, vectors=index.vectors, passing=0)
    if known is None:
        return unknown._replace(ef_search=widest)
    if known.passing < too_many:
        return unknown._replace(passing="few")
    many = unknown._replace(passing="many")
    # A query is searched as it was at first, so that its pages are those of one search.
    if known.found_by == hash(query):
        return many._replace(ef_search=widest)
    wide = widened(narrow, vectors=index.vectors, passing=known.passing)
    if wide == narrow:
        return many
    if not known.is_probed or known.tells_of(query):
        return many._replace(ef_search=wide, is_probed=not known.tells_of(query))
    is_around = lies_together(known.near.values(), known.passing / index.vectors)
    return many._replace(ef_search=wide) if is_around else many


def read_as(known: KnownFilter | None, hits: int) -> Passing:
    """Return how to read what passes a filter for `hits` hits where there is no index."""
    if known is None:
        return "unknown"
    return "few" if not known.total or seem_few(known.passing, known.total, hits) else "many"


def index_settings(
    use: IndexUse, settings: Settings, *, is_tried_out: bool
) -> dict[str, str | int]:
    """Return the settings of PostgreSQL that a search through an index needs."""
    return {
        "hnsw.ef_search": use.ef_search,
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": settings.hnsw_max_scan_tuples,
        "enable_seqscan": "off",
        # How to find what passes depends on the filter's values. All else that a plan depends on
        # is in the text, and planning takes longer than running it.
        "plan_cache_mode": f"force_{'custom' if is_tried_out else 'generic'}_plan",
        # The ways that are not taken make the plan look worth compiling and more processes.
        # Not "jit" itself: asyncpg switches that, and would leave it off for the session.
        "jit_above_cost": -1,
        "max_parallel_workers_per_gather": 0,
    }


def widened(ef_search: int, *, vectors: int, passing: int) -> int:
    """Return `ef_search` for an index of which a filter leaves `passing`, 0 if nobody knows.

    What a filter rules out is often what is nearest: it takes more to find the way around it, the
    more there is of that. Where chance decides what passes, there is nothing to go around.
    """
    share = max(passing / max(vectors, 1), LEAST_SHARE)
    around = math.sqrt(vectors / (NEAR * share))
    return min(round(ef_search * max(1.0, around)), MAX_EF_SEARCH)


def _too_many(index: VectorIndex, hits: int, settings: Settings) -> int:
    """Return how many chunks a filter must leave for the index to find the hits sooner.

    The index is asked for hits over the share of vectors that pass, and a vector that it gives
    costs about twice what reading one costs. A power of two: each number is a statement's text.
    """
    even = math.sqrt(2 * hits * max(index.vectors, 1))
    return int(min(2 ** round(math.log2(even)), settings.hnsw_exact_chunks + 1))


def _most_hits(index: VectorIndex, passing: int, hits: int) -> int:
    """Return how many hits the index finds sooner than all that pass are read, and one page.

    A power of two, as what is known of a filter changes a little. At most a sixteenth of all: for
    a fifth, PostgreSQL might rather read and sort, so that the hits of a page would depend on it.
    """
    even = min(passing**2 / (2 * max(index.vectors, 1)), index.vectors / 16)
    if index.holds == "signs":
        even /= RESCORED
    return max(int(2 ** round(math.log2(max(even, 1)))), hits)
