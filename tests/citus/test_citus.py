"""The library on a real Citus cluster, each owner's rows on one node or each schema's.

LLMEMORY_TEST_CITUS_URL names the coordinator's database, as a superuser: with the extensions citus
and vector and its workers registered. Without it there is nothing to run these on. Each test works
in schemas of its own, which it drops.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from integration.helpers import fetch, plain, rows
from integration.tenants import CALLS, WITHOUT_SESSION, View, arguments, outcome
from plugins.memories import MakeMemory
from plugins.server import with_driver
from psycopg import sql
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, ConfigurationError, HashEmbedder, Settings
from llmemory.schema import distribution, migrate, row_level_security
from llmemory.schema.distribution import By

CITUS_URL = os.environ.get("LLMEMORY_TEST_CITUS_URL", "")

pytestmark = [
    pytest.mark.skipif(not CITUS_URL, reason="LLMEMORY_TEST_CITUS_URL names no coordinator"),
    pytest.mark.anyio,
    pytest.mark.timeout(600),
]

SETTINGS = Settings(
    hnsw_owner_vectors=10, hnsw_refresh_s=0, word_count_chunks=5, word_count_minimum=1
)
OWNERS = ("acme", "globex")
PROPAGATED = {"citus.propagate_set_commands": "local"}
Change = Callable[..., Any]


@pytest.fixture
def make_schema() -> Iterator[Callable[[], str]]:
    """Name schemas, and drop them after the test."""
    names: list[str] = []

    def make() -> str:
        names.append(f"citus test {secrets.token_hex(4)}")
        return names[-1]

    yield make
    with psycopg.connect(plain(CITUS_URL), autocommit=True) as connection:
        for name in names:
            drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE")
            connection.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
def change() -> Change:
    """Call a function of the library with a connection in a transaction."""

    def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        engine = create_engine(with_driver(CITUS_URL, "postgresql+psycopg"), poolclass=NullPool)
        with engine.begin() as connection:
            return function(connection, *arguments, **options)

    return run


@pytest.fixture
async def engine(anyio_backend: str) -> AsyncIterator[AsyncEngine]:
    """An engine that has the nodes told of a transaction's settings."""
    engine = create_async_engine(
        with_driver(CITUS_URL, "postgresql+asyncpg"), connect_args={"server_settings": PROPAGATED}
    )
    yield engine
    await engine.dispose()


@pytest.fixture(params=["owner", "schema"])
def by(request: pytest.FixtureRequest) -> By:
    """What is kept together on a node."""
    layout: By = request.param
    return layout


@pytest.fixture
def schema(make_schema: Callable[[], str], change: Change, by: By) -> str:
    """A migrated, distributed schema."""
    name = make_schema()
    change(migrate.upgrade, name)
    change(distribution.distribute, name, by=by)
    return name


async def test_every_call_has_the_outcome_that_it_has_on_plain_tables(
    engine: AsyncEngine,
    make_memory: MakeMemory,
    make_schema: Callable[[], str],
    schema: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    random = Random(5)
    worlds = []
    for name in (schema, make_schema()):
        memory = make_memory(engine=engine, schema=name, settings=SETTINGS)
        await memory.initialize()
        worlds.append([View(memory, owner, engine, CITUS_URL) for owner in OWNERS])
        worlds[-1][1].ids = worlds[-1][0].ids
    number = 0
    for _ in range(3):
        names = [name for name in CALLS if name != "delete_owner"] + ["add_document"] * 4
        random.shuffle(names)
        for name in names:
            for who in (0, 1):
                number += 1
                given = arguments(random, who, number)
                joins = name not in WITHOUT_SESSION and random.random() < 0.3
                found = [await called(world[who], name, who, given, joins) for world in worlds]
                assert found[0] == found[1], name
        for distributed, _ in worlds:
            await distributed.memory.maintain()
        assert rows(CITUS_URL, schema=schema) == rows(CITUS_URL, schema=worlds[1][0].memory.schema)
    await worlds[0][0].memory.delete_owner(OWNERS[0])
    assert not any(rows(CITUS_URL, OWNERS[0], schema).values())
    assert any(rows(CITUS_URL, OWNERS[1], schema).values())


async def called(view: View, name: str, who: int, given: dict[str, Any], joins: bool) -> Any:
    if not joins:
        return await outcome(view, name, who, given, None)
    async with view.session() as session:
        return await outcome(view, name, who, given, session)


async def test_upkeep_of_all_owners(
    engine: AsyncEngine, make_memory: MakeMemory, schema: str
) -> None:
    memory = make_memory(engine=engine, schema=schema, settings=SETTINGS)
    await add_some(memory)
    maintained = await memory.maintain()
    assert (maintained.indexes_built, maintained.owners_counted) == (2, 2)
    assert (await memory.search("acme", "number 3 words"))[0].document_name == "Number 3"
    await memory.add_document("acme", "Later", "Later words.", embed="later")
    (job,) = await memory.list_jobs()
    assert job.document_name == "Later"
    assert await memory.process_pending_embeddings() == 1
    await memory.reembed(HashEmbedder(dimensions=32))
    assert [space.missing for space in await memory.list_spaces()] == [0, 0]
    assert await memory.drop_space(1) == 25
    health = await memory.health()
    assert (health.problem, health.warnings) == (None, [])


async def test_health_warns_where_the_nodes_are_not_told_of_settings(
    make_memory: MakeMemory, schema: str
) -> None:
    memory = make_memory(CITUS_URL, schema=schema)
    await memory.initialize()
    (warning,) = (await memory.health()).warnings
    assert "citus.propagate_set_commands" in warning


async def test_rows_stay_when_tables_are_distributed_and_come_back(
    engine: AsyncEngine,
    make_memory: MakeMemory,
    make_schema: Callable[[], str],
    change: Change,
    by: By,
) -> None:
    schema = make_schema()
    memory = make_memory(engine=engine, schema=schema, settings=SETTINGS)
    await add_some(memory)
    await memory.maintain()
    before = rows(CITUS_URL, schema=schema)
    hits = await memory.search("acme", "number 3 words")
    done = change(distribution.distribute, schema, by=by)
    assert {"chunks", "documents", "embedding_jobs", "embedding_spaces", "embeddings"} < set(done)
    assert change(distribution.distribute, schema, by=by) == []
    assert change(distribution.distribute_new_tables, schema) == []
    assert rows(CITUS_URL, schema=schema) == before
    assert await memory.search("acme", "number 3 words") == hits
    with pytest.raises(ConfigurationError, match="Undistribute it first"):
        change(distribution.distribute, schema, by="owner" if by == "schema" else "schema")
    assert set(change(distribution.undistribute, schema)) == set(done)
    assert change(distribution.undistribute, schema) == []
    assert rows(CITUS_URL, schema=schema) == before
    assert await memory.search("acme", "number 3 words") == hits


async def test_an_owner_lies_on_one_node(
    engine: AsyncEngine, make_memory: MakeMemory, schema: str
) -> None:
    await add_some(make_memory(engine=engine, schema=schema))
    plan = fetch(
        CITUS_URL,
        f'EXPLAIN SELECT FROM "{schema}".chunks AS c JOIN "{schema}".documents AS d '
        "USING (owner_id, document_id) WHERE c.owner_id = 'acme' AND d.owner_id = 'acme'",
    )
    assert any("Task Count: 1" in line for (line,) in plan)
    colocated = fetch(
        CITUS_URL,
        "SELECT count(DISTINCT colocationid) FROM pg_dist_partition AS d "
        "JOIN pg_class AS c ON c.oid = d.logicalrelid JOIN pg_namespace AS n "
        "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname <> 'embedding_spaces'",
        schema,
    )
    assert colocated == [(1,)]


async def test_revisions_run_before_and_after(
    engine: AsyncEngine, make_memory: MakeMemory, schema: str, change: Change, by: By
) -> None:
    memory = make_memory(engine=engine, schema=schema)
    await add_some(memory)
    change(migrate.upgrade, schema)
    change(migrate.check, schema)
    with pytest.raises(ConfigurationError, match="db undistribute"):
        change(migrate.downgrade, schema, "0001")
    change(distribution.undistribute, schema)
    change(migrate.downgrade, schema, "0001")
    change(migrate.upgrade, schema)
    change(distribution.distribute, schema, by=by)
    assert (await memory.search("acme", "number 3 words"))[0].document_name == "Number 3"


def test_a_schema_is_made_of_plain_tables_whatever_citus_would_do(
    make_schema: Callable[[], str], change: Change
) -> None:
    schema = make_schema()

    def upgrade(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL citus.enable_schema_based_sharding = on")
        migrate.upgrade(connection, schema)

    change(upgrade)
    assert change(distribution.undistribute, schema) == []


async def test_row_level_security(make_memory: MakeMemory, schema: str, change: Change) -> None:
    role = f"llmemory_citus_{secrets.token_hex(4)}"
    fetch(CITUS_URL, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        for grant in ("USAGE ON SCHEMA", "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"):
            fetch(CITUS_URL, f'GRANT {grant} "{schema}" TO {role}')
        change(row_level_security.enable, schema)
        url = with_driver(CITUS_URL, "postgresql+asyncpg")
        options = {"server_settings": PROPAGATED, "user": role, "password": "secret"}
        engine = create_async_engine(url, connect_args=options)
        settings = Settings(row_level_security=True, migrate=False)
        memory = make_memory(engine=engine, schema=schema, settings=settings)
        try:
            await add_some(memory)
            for owner in OWNERS:
                assert len(await memory.search(owner, "words", limit=50)) == 12
            assert (await memory.health()).warnings == []
        finally:
            await engine.dispose()
        with pytest.raises(ConfigurationError, match="db disable-rls"):
            change(as_role, role, schema)
    finally:
        change(row_level_security.disable, schema)
        fetch(CITUS_URL, f"DROP OWNED BY {role}")
        fetch(CITUS_URL, f"DROP ROLE {role}")


def as_role(connection: Connection, role: str, schema: str) -> None:
    connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
    distribution.undistribute(connection, schema)


async def add_some(memory: AsyncMemory) -> None:
    """Add 12 documents of each owner, in bulk."""
    await memory.add_documents(
        {
            "owner_id": owner,
            "document_name": f"Number {number}",
            "content": f"Number {number} has words, as {owner} has.",
            "external_id": str(number),
        }
        for owner in OWNERS
        for number in range(12)
    )
