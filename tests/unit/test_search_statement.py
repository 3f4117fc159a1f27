from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy.dialects import postgresql

from llmemory.models import Tables, tables_for
from llmemory.statements.filters import FilterShape
from llmemory.statements.search import SearchShape, search
from llmemory.types import SearchType

THREADS = 8


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_may_build_the_same_statement_at_once() -> None:
    shape = SearchShape(
        search_type=SearchType.HYBRID,
        dimensions=256,
        language_given=False,
        filters=FilterShape(),
        has_conditions=True,
    )
    barrier = Barrier(THREADS)

    def built(tables: Tables) -> str:
        barrier.wait()
        return str(search(tables, shape).compile(dialect=postgresql.dialect()))

    with ThreadPoolExecutor(THREADS) as pool:
        for number in range(10):
            statements = set(pool.map(built, [tables_for(f"tenant_{number}")] * THREADS))
            assert len(statements) == 1
