from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from llmemory.models import Tables, tables_for
from llmemory.statements.filters import FilterShape
from llmemory.statements.search import Passing, SearchShape, search, search_text
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


@pytest.mark.parametrize("passing", ["few", "many"])
@pytest.mark.parametrize("schema", ["llmemory", "an_application"])
def test_asyncpg_keeps_the_plan_of_a_hybrid_search_on_pools_of_an_application(
    passing: Passing, schema: str
) -> None:
    shape = SearchShape(
        search_type=SearchType.HYBRID,
        dimensions=1536,
        language_given=False,
        filters=FilterShape(date_from=True),
        has_conditions=False,
        passing=passing,
    )
    assert len(search_text(asyncpg_dialect(), tables_for(schema), shape).text) <= 15 * 1024
