"""Migrating real databases: from code, from the command line, at once, and where it must fail."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
import psycopg
import pytest
import sqlalchemy
from alembic import command
from migrations.databases import transaction
from plugins.memories import MakeMemory
from plugins.server import execute, fresh_database, with_driver
from psycopg import sql

from llmemory import (
    ConfigurationError,
    ExtensionMissing,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    Settings,
)
from llmemory.schema import migrate

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]
DRIVERS = pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])

TABLES = {
    "chunks",
    "documents",
    "embedding_jobs",
    "embedding_spaces",
    "embeddings",
    "lexical_statistics",
    "llmemory_version",
}
NAMES = [
    "with-dash",
    "Capital",
    "with space",
    "dotted.name",
    'double"quote',
    "single'quote",
    "co:lon",
    "per%cent",
    "%s",
    "back\\slash",
    "select",
    "日本語",
    "a" * 63,
    "ü" * 31 + "a",
]

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
        above = connection.exec_driver_sql(one + ordered).all()
        migrate.downgrade(connection, "llmemory", "0003")
        assert connection.exec_driver_sql(two + ordered).all() == above
        migrate.upgrade(connection, "llmemory")
        assert connection.exec_driver_sql(one + ordered).all() == above
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


class TestSchemaNames:
    @pytest.mark.parametrize("name", NAMES)
    async def test_any_identifier_works(
        self, make_memory: MakeMemory, empty_database_url: str, name: str
    ) -> None:
        memory = make_memory(empty_database_url, schema=name)
        added = await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        (hit,) = await memory.search("acme", "days of leave")
        assert hit.document_id == added.document_id
        assert tables_in(empty_database_url, name) == TABLES
        with transaction(empty_database_url) as connection:
            # SQLAlchemy 2.0 fails to reflect foreign keys into a schema with a double quote.
            if '"' not in name or not sqlalchemy.__version__.startswith("2.0."):
                command.check(migrate._config(connection=connection, schema=name))
            migrate.downgrade(connection, name, "base")
            migrate.upgrade(connection, name)

    @pytest.mark.parametrize("name", ["a" * 64, "ü" * 32])
    def test_more_than_63_bytes_are_refused(self, make_memory: MakeMemory, name: str) -> None:
        with pytest.raises(ConfigurationError, match="63"):
            make_memory(schema=name)

    async def test_two_schemas_do_not_see_each_other(self, make_memory: MakeMemory) -> None:
        first, second = make_memory(schema="first"), make_memory(schema="second")
        added = await first.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        assert await second.search("acme", "leave") == []
        assert (await second.list_documents("acme")).total_count == 0
        await second.add_document("acme", "Other", "Nothing of that kind.", external_id="other")
        assert await second.delete_owner("acme") == 1
        (hit,) = await first.search("acme", "leave")
        assert hit.document_id == added.document_id


class TestRoles:
    """What a role that is no superuser meets."""

    async def test_works_where_the_extension_exists(
        self, make_memory: MakeMemory, server_url: str
    ) -> None:
        with database_of_role(server_url, extension=True, may_create=True) as url:
            memory = make_memory(url)
            await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
            assert len(await memory.search("acme", "leave")) == 1
            await memory.close()

    async def test_works_in_a_schema_made_for_it(
        self, make_memory: MakeMemory, server_url: str
    ) -> None:
        with database_of_role(server_url, extension=True, may_create=False) as url:
            schema = sql.Identifier("made for it")
            role = sql.Identifier(urlsplit(url).username or "")
            superuser_url = as_superuser(url, server_url)
            execute(
                superuser_url,
                sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(schema, role),
            )
            memory = make_memory(url, schema="made for it")
            await memory.initialize()
            assert tables_in(superuser_url, "made for it") == TABLES
            await memory.close()

    @DRIVERS
    async def test_is_told_how_to_install_a_missing_extension(
        self, make_memory: MakeMemory, server_url: str, driver: str
    ) -> None:
        with database_of_role(server_url, extension=False, may_create=False) as url:
            memory = make_memory(with_driver(url, driver))
            with pytest.raises(ExtensionMissing, match="CREATE EXTENSION vector"):
                await memory.initialize()
            assert not schema_exists(url, "llmemory")
            await memory.close()

    @DRIVERS
    async def test_is_told_how_to_get_a_schema(
        self, make_memory: MakeMemory, server_url: str, driver: str
    ) -> None:
        with database_of_role(server_url, extension=True, may_create=False) as url:
            memory = make_memory(with_driver(url, driver), schema='of "mine"')
            with pytest.raises(SchemaMissing, match='CREATE SCHEMA "of ""mine""" AUTHORIZATION'):
                await memory.initialize()
            assert not schema_exists(url, 'of "mine"')
            await memory.close()


class TestRefusals:
    async def test_pgvector_is_too_old(self, make_memory: MakeMemory, database_url: str) -> None:
        execute(
            database_url,
            sql.SQL("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"),
        )
        with pytest.raises(ExtensionMissing, match=r"0\.7\.4.* ALTER EXTENSION vector UPDATE"):
            await make_memory().initialize()
        with pytest.raises(ExtensionMissing, match=r"0\.7\.4"):
            await make_memory(schema="another").initialize()
        assert not schema_exists(database_url, "another")

    @pytest.mark.parametrize("may_migrate", [True, False])
    async def test_the_schema_is_newer(
        self, make_memory: MakeMemory, database_url: str, may_migrate: bool
    ) -> None:
        execute(database_url, sql.SQL("UPDATE llmemory.llmemory_version SET version_num = '9999'"))
        memory = make_memory(settings=Settings(migrate=may_migrate))
        with pytest.raises(SchemaTooNew, match="newer version of llmemory") as caught:
            await memory.initialize()
        assert (caught.value.found, caught.value.expected) == ("9999", migrate.HEAD)
        assert (await memory.health()).problem == str(caught.value)

    async def test_the_schema_is_missing_and_may_not_be_made(
        self, make_memory: MakeMemory, database_url: str
    ) -> None:
        memory = make_memory(schema="absent", settings=Settings(migrate=False))
        with pytest.raises(SchemaMissing, match="llmemory db upgrade --schema absent"):
            await memory.initialize()
        assert not schema_exists(database_url, "absent")

    @DRIVERS
    @pytest.mark.parametrize("may_migrate", [True, False])
    async def test_tables_that_vanish_are_named_and_looked_for_again(
        self, make_memory: MakeMemory, database_url: str, driver: str, may_migrate: bool
    ) -> None:
        url = with_driver(database_url, driver)
        settings = Settings(migrate=may_migrate)
        await make_memory(url, schema="of them").initialize()
        memory = make_memory(url, schema="of them", settings=settings)
        await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        execute(database_url, sql.SQL('DROP SCHEMA "of them" CASCADE'))
        with pytest.raises(SchemaMissing, match="llmemory db upgrade --schema 'of them'") as caught:
            await memory.search("acme", "leave")
        assert caught.value.schema == "of them"
        if not may_migrate:
            with pytest.raises(SchemaMissing, match='"of them" has no tables yet'):
                await memory.search("acme", "leave")
            await make_memory(url, schema="of them").initialize()
        assert await memory.search("acme", "leave") == []
        await memory.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
        assert (await memory.get_statistics("acme")).embedding_count == 1

    async def test_a_checked_schema_needs_no_migration(self, make_memory: MakeMemory) -> None:
        await make_memory(settings=Settings(migrate=False)).initialize()

    async def test_the_schema_is_older(
        self, make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head = migrate.HEAD
        monkeypatch.setattr(migrate, "HEAD", "9999")
        memory = make_memory(settings=Settings(migrate=False))
        with pytest.raises(SchemaOutOfDate, match="llmemory db upgrade") as caught:
            await memory.initialize()
        assert type(caught.value) is SchemaOutOfDate
        assert (caught.value.found, caught.value.expected) == (head, "9999")


def tables_in(url: str, schema: str = "llmemory") -> set[str]:
    return names(url, "SELECT tablename FROM pg_tables WHERE schemaname = %s", schema)


def functions_in(url: str, schema: str = "llmemory") -> set[str]:
    return names(
        url,
        "SELECT proname FROM pg_proc WHERE pronamespace = quote_ident(%s)::regnamespace",
        schema,
    )


def schema_exists(url: str, schema: str) -> bool:
    return bool(names(url, "SELECT nspname FROM pg_namespace WHERE nspname = %s", schema))


def names(url: str, query: str, parameter: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute(query, [parameter])}


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


@contextmanager
def database_of_role(server_url: str, *, extension: bool, may_create: bool) -> Iterator[str]:
    """Give a fresh database's URL for a role that is no superuser.

    Args:
        server_url: A superuser's URL of the server.
        extension: Whether pgvector is installed in the database.
        may_create: Whether the role may create schemas in it.
    """
    name = f"llmemory_test_{secrets.token_hex(6)}"
    password = secrets.token_hex(6)
    role = sql.Identifier(name)
    execute(
        server_url, sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password))
    )
    try:
        with fresh_database(server_url) as url:
            if extension:
                execute(url, sql.SQL("CREATE EXTENSION vector"))
            if may_create:
                database = sql.Identifier(urlsplit(url).path.removeprefix("/"))
                execute(url, sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
            parts = urlsplit(url)
            place = parts.netloc.rpartition("@")[2]
            yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{place}"))
    finally:
        execute(server_url, sql.SQL("DROP ROLE {}").format(role))


def as_superuser(url: str, server_url: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=urlsplit(url).path))
