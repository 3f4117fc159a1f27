"""How widely an HNSW index is searched behind a filter."""

from __future__ import annotations

import pytest

from llmemory.search.retrieval import widened


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
