"""Schemas to migrate: their names, the roles that may, and what is refused."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import sqlalchemy
from alembic import command
from migrations.databases import (
    DRIVERS,
    TABLES,
    as_superuser,
    database_of_role,
    schema_exists,
    tables_in,
    transaction,
)
from plugins.memories import MakeMemory
from plugins.server import execute, with_driver
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
        memory = make_memory(settings=Settings(migrate=False))
        await memory.initialize()
        assert (await memory.health()).healthy

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
