"""Migrating real databases: up and down, at once, and from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
import sqlalchemy
from alembic import command
from migrations.databases import (
    DRIVERS,
    TABLES,
    database_of_role,
    functions_in,
    tables_in,
    transaction,
)
from plugins.memories import MakeMemory
from plugins.server import execute, with_driver
from psycopg import sql

from llmemory.schema import migrate

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]

INITIALIZE = """
import asyncio, sys
from llmemory import AsyncMemory, HashEmbedder

async def main():
    async with AsyncMemory(sys.argv[1], embedder=HashEmbedder()):
        pass

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


def test_head_is_the_newest_revision() -> None:
    assert migrate.script_directory().get_heads() == [migrate.HEAD]


def test_models_and_revisions_agree(database_url: str) -> None:
    with transaction(database_url) as connection:
        command.check(migrate._config(connection=connection, schema="llmemory"))


def test_up_down_up(database_url: str) -> None:
    with transaction(database_url) as connection:
        migrate.downgrade(connection, "llmemory", "base")
    assert tables_in(database_url) == {"llmemory_version"}
    assert functions_in(database_url) == set()
    with transaction(database_url) as connection:
        migrate.upgrade(connection, "llmemory")
        command.check(migrate._config(connection=connection, schema="llmemory"))
    assert tables_in(database_url) == TABLES


def test_states_of_spaces_survive_a_downgrade(database_url: str) -> None:
    insert = sql.SQL(
        "INSERT INTO llmemory.embedding_spaces VALUES ({}, 'hash', 'hash', {}, {}, {}, now())"
    )
    states = ("ready", "refilling", "filling", "dropped")
    for number, state in enumerate(states, start=1):
        execute(database_url, insert.format(number, 100 + number, state, number == 1))
    with transaction(database_url) as connection:
        migrate.downgrade(connection, "llmemory", "0002")
        migrate.upgrade(connection, "llmemory")
        found = connection.execute(
            sqlalchemy.text("SELECT state FROM llmemory.embedding_spaces ORDER BY space_id")
        )
        assert found.scalars().all() == ["ready", "ready", "filling", "filling"]


async def test_words_of_stored_chunks_survive_a_downgrade(
    make_memory: MakeMemory, database_url: str
) -> None:
    memory = make_memory()
    for name, content in {
        "policy": "Staff have 25 days of leave, and leave for every leaving: leave it.",
        "accents": "Une journée de congé, à São Paulo.",
        "letters": "従業員には年間二十五日の休暇があります。",
        "nothing": "the of and",
    }.items():
        await memory.add_document("acme", name, content)
    queries = ("leaves days", "conge", "休暇", '"days of leave"', "25 -leave")
    hits = [await memory.search("acme", query, search_type="text") for query in queries]
    one = "SELECT array(SELECT unnest((words).terms) ORDER BY 1), (words).lexical::text"
    two = "SELECT array(SELECT unnest(terms) ORDER BY 1), lexical::text"
    ordered = " FROM llmemory.chunks ORDER BY chunk_id"
    with transaction(database_url) as connection:
        head = connection.exec_driver_sql(one + ordered).all()
        migrate.downgrade(connection, "llmemory", "0004")
        above = connection.exec_driver_sql(one + ordered).all()
        migrate.downgrade(connection, "llmemory", "0003")
        assert connection.exec_driver_sql(two + ordered).all() == above
        migrate.upgrade(connection, "llmemory", "0004")
        assert connection.exec_driver_sql(one + ordered).all() == above
        migrate.upgrade(connection, "llmemory")
        assert connection.exec_driver_sql(one + ordered).all() == head
        command.check(migrate._config(connection=connection, schema="llmemory"))
    found = [await memory.search("acme", query, search_type="text") for query in queries]
    assert found == hits
    assert [len(of_query) for of_query in hits] == [1, 1, 1, 1, 0]


@DRIVERS
async def test_initialize_migrates_an_empty_database(
    make_memory: MakeMemory, empty_database_url: str, driver: str
) -> None:
    memory = make_memory(with_driver(empty_database_url, driver))
    await memory.initialize()
    await memory.initialize()
    assert tables_in(empty_database_url) == TABLES
    assert tables_in(empty_database_url, "public") == set()
    await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
    assert len(await memory.search("acme", "days of leave")) == 1
    health = await memory.health()
    assert health.healthy
    assert health.revision == migrate.HEAD


def test_schemas_migrate_at_once_in_threads(empty_database_url: str) -> None:
    """Alembic keeps the command that runs in globals of the process."""
    schemas = [f"tenant_{number}" for number in range(8)]

    def upgrade(schema: str) -> None:
        with transaction(empty_database_url) as connection:
            migrate.upgrade(connection, schema)

    with ThreadPoolExecutor(len(schemas)) as threads:
        for _ in threads.map(upgrade, schemas):
            pass
    assert all(tables_in(empty_database_url, schema) == TABLES for schema in schemas)


async def test_schemas_migrate_at_once_in_tasks(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    schemas = [f"tenant_{number}" for number in range(8)]
    async with anyio.create_task_group() as group:
        for schema in schemas:
            group.start_soon(make_memory(empty_database_url, schema=schema).initialize)
    assert all(tables_in(empty_database_url, schema) == TABLES for schema in schemas)


def test_ten_processes_initialize_at_once(empty_database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INITIALIZE, empty_database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=50)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * 10, "\n".join(outputs)
    assert tables_in(empty_database_url) == TABLES


class TestCommandLine:
    """``alembic`` in the clone, configured by pyproject.toml and LLMEMORY_DATABASE_URL."""

    @DRIVERS
    def test_upgrade_check_downgrade(self, empty_database_url: str, driver: str) -> None:
        url = with_driver(empty_database_url, driver)
        alembic(url, "upgrade", "head")
        assert tables_in(empty_database_url) == TABLES
        assert "No new upgrade operations detected" in alembic(url, "check")
        assert migrate.HEAD in alembic(url, "current")
        alembic(url, "downgrade", "base")
        assert tables_in(empty_database_url) == {"llmemory_version"}

    def test_another_schema(self, empty_database_url: str) -> None:
        alembic(empty_database_url, "upgrade", "head", schema="Ten-ant %1")
        alembic(empty_database_url, "check", schema="Ten-ant %1")
        assert tables_in(empty_database_url, "Ten-ant %1") == TABLES
        assert tables_in(empty_database_url) == set()

    def test_offline_mode_prints_the_statements(self) -> None:
        printed = alembic("postgresql://nobody@localhost:1/nothing", "upgrade", "head", "--sql")
        for table in TABLES:
            assert f"CREATE TABLE llmemory.{table} (" in printed
        assert "INSERT INTO llmemory.llmemory_version" in printed

    def test_a_role_named_like_the_schema(self, server_url: str) -> None:
        # "$user" leads the default search path: its tables would be reflected without a schema.
        with database_of_role(server_url, extension=True, may_create=True) as url:
            schema = urlsplit(url).username or ""
            alembic(url, "upgrade", "head", schema=schema)
            assert "No new upgrade operations detected" in alembic(url, "check", schema=schema)
            assert tables_in(url, schema) == TABLES


def alembic(url: str, *arguments: str, schema: str = "llmemory") -> str:
    result = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "LLMEMORY_DATABASE_URL": url, "LLMEMORY_SCHEMA_NAME": schema},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
