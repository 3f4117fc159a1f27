"""Two owners in three layouts: neither sees, changes or weighs anything of the other's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from inspect import getmembers, isfunction
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from integration.helpers import fetch, rows, until
from integration.tenants import (
    ABOUT_NO_OWNER,
    CALLS,
    MARKS,
    WITHOUT_SESSION,
    View,
    arguments,
    outcome,
)
from plugins.guarded import guard
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import AsyncMemory, Settings, models

pytestmark = pytest.mark.anyio

OWNERS = ("o'reilly", "back\\slash %s :x")
ROUNDS = 2
SEED = 7
SETTINGS = Settings(
    hnsw_owner_vectors=10, hnsw_refresh_s=0, word_count_chunks=5, word_count_minimum=1
)
LAYOUTS = ("column", "schemas", "policies")


class Tenancy:
    """Both owners in one layout, and each alone in a schema of its own."""

    def __init__(self, together: list[View], alone: list[View], upkeep: list[AsyncMemory]) -> None:
        self.together = together
        self.alone = alone
        self.upkeep = upkeep


@pytest.fixture(params=LAYOUTS)
async def tenancy(
    request: pytest.FixtureRequest,
    database_url: str,
    roles: dict[str, str],
    make_memory: MakeMemory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Tenancy]:
    monkeypatch.chdir(tmp_path)
    engine = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)

        def memory(schema: str) -> AsyncMemory:
            return make_memory(engine=engine, schema=schema, settings=SETTINGS)

        def view(memory: AsyncMemory, owner_id: str) -> View:
            return View(memory, owner_id, engine, database_url)

        if request.param == "schemas":
            # One name for both: the schema alone tells them apart.
            names = (OWNERS[0], OWNERS[0])
            together = [view(memory(f"tenant {number}"), names[number]) for number in (0, 1)]
            upkeep = [each.memory for each in together]
        elif request.param == "column":
            names = OWNERS
            shared = memory("llmemory")
            together = [view(shared, name) for name in names]
            upkeep = [shared]
        else:
            names = OWNERS
            guarded = guard(database_url, roles)
            settings = SETTINGS.model_copy(update={"row_level_security": True})
            bound = create_async_engine(with_driver(guarded.application, "postgresql+psycopg"))
            stack.push_async_callback(bound.dispose)
            shared = make_memory(engine=bound, settings=settings)
            together = [View(shared, name, bound, database_url, is_guarded=True) for name in names]
            upkeep = [make_memory(guarded.upkeep, settings=settings)]
        # What is known by id in this world is known of both owners.
        together[1].ids = together[0].ids
        alone = [view(memory(f"alone {number}"), names[number]) for number in (0, 1)]
        memories = [each.memory for each in (*together, *alone)]
        for each in dict.fromkeys(memories):
            await each.initialize()
        yield Tenancy(together, alone, [*upkeep, *memories[2:]])


def test_every_public_call_is_made() -> None:
    public = {name for name, _ in getmembers(AsyncMemory, isfunction) if name[0] != "_"}
    assert CALLS.keys() | ABOUT_NO_OWNER == public | {"from_engine"}


async def test_owners_are_worlds_of_their_own(tenancy: Tenancy) -> None:
    random = Random(SEED)
    number = 0
    for turn in range(ROUNDS):
        names = [name for name in CALLS if name != "delete_owner"] + ["add_document"] * 6
        steps = [(name, who) for name in names for who in (0, 1)]
        random.shuffle(steps)
        if turn == 1:
            for memory in tenancy.upkeep:
                await memory.maintain()
        for name, who in steps:
            number += 1
            given = arguments(random, who, number)
            joins = name not in WITHOUT_SESSION and random.random() < 0.3
            await compare(tenancy, [(name, who, given)], joins=joins)
        # In one transaction, one owner after the other.
        for first, second in (("add_document", "search"), ("update_document", "add_documents")):
            pair = []
            for name, who in ((first, 0), (second, 1), ("list_documents", 0)):
                number += 1
                pair.append((name, who, arguments(random, who, number)))
            await compare(tenancy, pair, joins=True)
        for who in (0, 1):
            texts = contents(tenancy.together[who])
            assert texts
            assert all(MARKS[who] in text for text in texts)
    before = contents(tenancy.together[1])
    assert before
    await compare(tenancy, [("delete_owner", 0, {})], joins=False)
    assert not any(map(len, stored(tenancy.together[0]).values()))
    assert contents(tenancy.together[1]) == before
    await compare(tenancy, [("get_statistics", who, {}) for who in (0, 1)], joins=True)


async def compare(tenancy: Tenancy, steps: list[Any], *, joins: bool) -> None:
    """Make calls where both owners live and where each lives alone; the outcomes are the same."""
    found = await outcomes(tenancy.together, steps, joins=joins)
    expected = await outcomes(tenancy.alone, steps, joins=joins)
    for (name, who, given), ours, theirs in zip(steps, found, expected, strict=True):
        assert ours == theirs, (name, who, given)
        assert MARKS[1 - who] not in repr(
            [part for part in ours if isinstance(part, dict)] if isinstance(ours, list) else ours
        ), (name, who, given)


async def outcomes(views: list[View], steps: list[Any], *, joins: bool) -> list[Any]:
    if not joins:
        return [await outcome(views[who], name, who, given, None) for name, who, given in steps]
    engines = {id(views[who].engine): views[who].engine for _, who, _ in steps}
    (engine,) = engines.values()
    results = []
    async with engine.begin() as connection:
        for name, who, given in steps:
            results.append(await outcome(views[who], name, who, given, connection))
    return results


def stored(view: View) -> dict[str, list[tuple[Any, ...]]]:
    """Return the owner's rows of every table that has owners, found in the catalogue."""
    schema = view.memory.schema
    tables = fetch(
        view.url,
        "SELECT table_name::text FROM information_schema.columns "
        "WHERE table_schema = %s AND column_name = 'owner_id' ORDER BY 1",
        schema,
    )
    owned = {name for name, table in models.Base.metadata.tables.items() if "owner_id" in table.c}
    assert {f"llmemory.{name}" for (name,) in tables} == owned
    return {
        name: fetch(
            view.url, f'SELECT * FROM "{schema}"."{name}" WHERE owner_id = %s', view.owner_id
        )
        for (name,) in tables
    }


def contents(view: View) -> list[str]:
    """Return the texts of the owner's documents and chunks."""
    return [
        text
        for name in ("documents", "chunks")
        for (text,) in fetch(
            view.url,
            f'SELECT content FROM "{view.memory.schema}".{name} WHERE owner_id = %s '
            "ORDER BY content",
            view.owner_id,
        )
    ]


async def test_deleting_an_owner_goes_on_where_it_was_stopped(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory()
    await memory.add_documents(
        {"owner_id": owner, "document_name": str(n), "content": f"Text {n}."}
        for owner in ("leaves", "stays")
        for n in range(2_500 if owner == "leaves" else 5)
    )
    stays = rows(database_url, "stays")
    async with anyio.create_task_group() as group:
        group.start_soon(memory.delete_owner, "leaves")
        await until(lambda: rows(database_url, "leaves")["documents"] < 2_500)
        group.cancel_scope.cancel()
    left = rows(database_url, "leaves")
    assert 0 < left["documents"] < 2_500
    assert left["documents"] == left["chunks"] == left["embeddings"]
    assert await memory.delete_owner("leaves") == left["documents"]
    assert not any(rows(database_url, "leaves").values())
    assert rows(database_url, "stays") == stays
