"""Plans of the statements that run, as PostgreSQL explains them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
def plans(engine: AsyncEngine) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Give the plan nodes of every SELECT that has run on the engine, with ANALYZE."""
    with explained(engine) as found:
        yield lambda: found


@pytest.fixture
def plans_of() -> Callable[[AsyncEngine], AbstractContextManager[list[dict[str, Any]]]]:
    """``with plans_of(engine) as nodes``: the same for an engine of a test's own."""
    return explained


@contextmanager
def explained(engine: AsyncEngine) -> Iterator[list[dict[str, Any]]]:
    """Collect the plan nodes of every SELECT on a memory's tables that runs on the engine."""
    found: list[dict[str, Any]] = []
    busy = False

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        nonlocal busy
        if (
            busy
            or not statement.lstrip().startswith(("SELECT", "WITH"))
            or not re.search(r"llmemory\.|\.embeddings", statement)
        ):
            return
        busy = True
        try:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            (plan,) = cursor.fetchone()
            found.extend(_nodes(plan if isinstance(plan, list) else json.loads(plan)))
        finally:
            busy = False

    event.listen(engine.sync_engine, "before_cursor_execute", explain)
    yield found
    event.remove(engine.sync_engine, "before_cursor_execute", explain)


def _nodes(plan: Any) -> Iterator[dict[str, Any]]:
    if isinstance(plan, list):
        for part in plan:
            yield from _nodes(part)
    elif "Plan" in plan:
        yield from _nodes(plan["Plan"])
    else:
        yield plan
        yield from _nodes(plan.get("Plans", []))


def indexes(found: list[dict[str, Any]]) -> set[str]:
    """Return the indexes of a plan, also those that were not read in the end."""
    return {node["Index Name"] for node in found if "Index Name" in node}


def indexes_read(found: list[dict[str, Any]]) -> set[str]:
    """Return the indexes that a plan has read."""
    return indexes([node for node in found if node["Actual Loops"]])


def most_rows(found: list[dict[str, Any]], table: str) -> float:
    """Return how many rows of a table one step of a plan has read at most."""
    return max(
        (node["Actual Rows"] for node in found if node.get("Relation Name") == table), default=0
    )
