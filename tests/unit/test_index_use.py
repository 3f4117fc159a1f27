"""How an HNSW index is used behind a filter, by what searches have found out about it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from llmemory import Settings
from llmemory.search import known_filters
from llmemory.search.index_use import IndexUse, index_use, read_as, widened
from llmemory.search.known_filters import PROBES, KnownFilter, KnownFilters, lies_together
from llmemory.search.vector_indexes import VectorIndex
from llmemory.validation.filters import Filters

SCATTERED = dict(enumerate((48, 55, 51, 43, 50, 58, 47, 52, 44, 50, 49, 53)))
ASKED = {hash("asked"): 48}
TOGETHER = dict(enumerate((100, 0, 0, 100, 100, 0, 12, 100, 90, 0, 0, 98)))


@pytest.mark.parametrize(
    ("vectors", "passing", "ef_search"),
    [
        (20_000, 10_000, 100),
        (20_000, 1_000, 200),
        (200_000, 100_000, 200),
        (200_000, 10_000, 632),
        (200_000, 100, 632),
        (200_000, 0, 632),
        (10_000_000, 5_000_000, 1000),
        (0, 0, 100),
    ],
)
def test_the_way_around_what_is_ruled_out(vectors: int, passing: int, ef_search: int) -> None:
    assert widened(100, vectors=vectors, passing=passing) == ef_search


@pytest.mark.parametrize(
    ("vectors", "known", "use"),
    [
        (200_000, None, IndexUse("unknown", 2048, 16_384, 632)),
        (200_000, KnownFilter(2000), IndexUse("few", 2048, 10, 100)),
        (200_000, KnownFilter(100_000), IndexUse("many", 2048, 16_384, 200, is_probed=True)),
        (200_000, KnownFilter(100_000, near={1: 48}), IndexUse("many", 2048, 16_384, 200, True)),
        (200_000, KnownFilter(100_000, near=ASKED), IndexUse("many", 2048, 16_384, 200)),
        (
            200_000,
            KnownFilter(100_000, found_by=hash("asked")),
            IndexUse("many", 2048, 16_384, 632),
        ),
        (
            200_000,
            KnownFilter(100_000, near=SCATTERED | ASKED),
            IndexUse("many", 2048, 16_384, 200),
        ),
        (200_000, KnownFilter(100_000, near=SCATTERED), IndexUse("many", 2048, 16_384, 100)),
        (200_000, KnownFilter(100_000, near=TOGETHER), IndexUse("many", 2048, 16_384, 200)),
        (20_000, KnownFilter(10_000), IndexUse("many", 512, 1024, 100)),
    ],
)
def test_use(vectors: int, known: KnownFilter | None, use: IndexUse) -> None:
    index = VectorIndex("halves", vectors)
    settings = Settings()
    found = index_use(
        index, hits=10, query="asked", is_narrowed=True, known=known, settings=settings
    )
    assert found == use


def test_without_a_filter_the_index_is_searched_as_it_is_set() -> None:
    use = index_use(
        VectorIndex("halves", 200_000),
        hits=10,
        query="asked",
        is_narrowed=False,
        known=None,
        settings=Settings(hnsw_ef_search=77),
    )
    assert use.ef_search == 77
    assert not use.is_probed


@pytest.mark.parametrize(
    ("known", "hits", "passing"),
    [
        (None, 10, "unknown"),
        (KnownFilter(16), 10, "few"),
        (KnownFilter(50, 100), 10, "many"),
        (KnownFilter(100, 2000), 10, "few"),
        (KnownFilter(1000, 2000), 10, "many"),
        (KnownFilter(500, 2000), 10, "many"),
        (KnownFilter(500, 2000), 100, "few"),
        (KnownFilter(2000, 2000), 1000, "many"),
    ],
)
def test_how_what_passes_is_read_without_an_index(
    known: KnownFilter | None, hits: int, passing: str
) -> None:
    assert read_as(known, hits) == passing


@pytest.mark.parametrize("share", [0.02, 0.05, 0.5, 0.9])
def test_what_chance_decides_is_seldom_thought_to_lie_together(share: float) -> None:
    counts = np.random.default_rng(5).binomial(100, share, (1000, PROBES))
    assert sum(lies_together(near, share) for near in counts.tolist()) < 50


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_what_lies_together_is_seen(share: float) -> None:
    # Each query's surroundings have their own share.
    generator = np.random.default_rng(5)
    shares = generator.beta(share, 1 - share, (1000, PROBES))
    counts = generator.binomial(100, shares)
    assert sum(lies_together(near, share) for near in counts.tolist()) > 980


@pytest.mark.parametrize(
    ("near", "share", "together"),
    [
        ([0] * PROBES, 0.05, True),
        ([5] * PROBES, 0.5, True),
        ([100] * PROBES, 1.0, False),
        ([100] * PROBES, 0.5, False),
    ],
)
def test_all_queries_in_one_place(near: Sequence[int], share: float, together: bool) -> None:
    assert lies_together(near, share) is together


class TestKnownFilters:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr(known_filters.time, "monotonic", lambda: now[0])
        return now

    def test_what_is_old_is_found_out_again(self, clock: list[float]) -> None:
        known = KnownFilters(refresh_s=60)
        filters = Filters(id_at_origin="a")
        assert known.get("owner", filters) is None
        known.put_passing("owner", filters, "a query", 7)
        found = KnownFilter(7, found_by=hash("a query"), expires_s=160)
        assert known.get("owner", filters) == found
        assert known.get("another", filters) is None
        clock[0] = 160
        assert known.get("owner", filters) is None

    def test_a_week_ago_is_the_same_for_an_hour(self) -> None:
        known = KnownFilters(refresh_s=60)
        week_ago = datetime(2025, 1, 31, 12, 30, 1, 5, UTC)
        known.put_passing("owner", Filters(date_from=week_ago), "a query", 7)
        known.put_passing("owner", Filters(date_to=week_ago), "a query", 8)
        for later, passing in ((29, 7), (30, None)):
            filters = Filters(date_from=week_ago + timedelta(minutes=later))
            found = known.get("owner", filters)
            assert (found and found.passing) == passing
        found = known.get("owner", Filters(date_to=week_ago - timedelta(minutes=30)))
        assert found is not None
        assert found.passing == 8

    def test_surroundings_are_kept_and_looked_at_again(self, clock: list[float]) -> None:
        known = KnownFilters(refresh_s=60)
        filters = Filters(id_at_origin="a")
        known.put_near("owner", filters, "too early", 1)
        known.put_passing("owner", filters, "a query", 7)
        # A query that is asked again tells nothing new.
        for near in sorted([*range(PROBES + 2)] * 2):
            known.put_near("owner", filters, f"query {near}", near)
        found = known.get("owner", filters)
        assert found is not None
        assert list(found.near.values()) == list(range(PROBES))
        assert found.is_probed
        assert found.tells_of("query 3")
        assert not found.tells_of("too early")
        clock[0] = 160
        for _ in range(3):
            known.put_passing("owner", filters, "another", 9)
        found = known.get("owner", filters)
        assert found is not None
        assert (found.passing, found.expires_s) == (9, 220)
        assert list(found.near.values()) == list(range(1, PROBES))
        assert not found.is_probed
        assert not found.tells_of("query 0")
