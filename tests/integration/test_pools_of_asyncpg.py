"""Memories on a pool of asyncpg that belongs to the application, and many schemas on one pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from integration.helpers import fetch, together
from integration.shared_connections import Connections, add_and_list, url_named
from pgdbm import AsyncDatabaseManager, DatabaseConfig
from plugins.server import with_driver
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import (
    AsyncMemory,
    AwordMemory,
    ClosedError,
    ConfigurationError,
    HashEmbedder,
    Settings,
    StorageUnavailable,
)

pytestmark = pytest.mark.anyio

# asyncpg itself switches jit off and on again when it looks up types.
SETTINGS = (
    "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'jit' ORDER BY 1"
)
END_OTHER_CONNECTIONS = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
JSON = """SELECT '{"a": 1}'::json, '{"a": 1}'::jsonb"""


@asynccontextmanager
async def pgdbm_pool(url: str, size: int = 3, **options: Any) -> AsyncIterator[asyncpg.Pool]:
    config = DatabaseConfig(
        connection_string=url, min_connections=size, max_connections=size, **options
    )
    pool = await AsyncDatabaseManager.create_shared_pool(config)
    try:
        yield pool
    finally:
        # Waits for connections that were not given back.
        async with asyncio.timeout(5):
            await pool.close()


@pytest.mark.direct("pgdbm sends parameters that PgBouncer refuses")
class TestPoolsOfAsyncpg:
    async def test_connections_come_from_the_pool_and_go_back_as_they_came(
        self, database_url: str
    ) -> None:
        """pgdbm pins the search path to pg_catalog, where pgvector is not."""
        named = url_named(database_url, "pgdbm")
        async with (
            Connections(database_url, "pgdbm") as connections,
            pgdbm_pool(named, 2, server_settings={"application_name": "pgdbm"}) as pool,
        ):
            before = await self.seen_by_owner(pool)
            memories = [
                AwordMemory.from_db_manager(
                    AsyncDatabaseManager(pool=pool, schema=schema), embedder=HashEmbedder()
                )
                for schema in ("users", "documents")
            ]
            for memory in memories:
                await memory.initialize()
            found = await together(
                *(add_and_list(memory, f"word{n}") for memory in memories for n in range(5))
            )
            assert {len(names) for names in found} <= set(range(1, 6))
            for memory in memories:
                page = await memory.list_documents("acme")
                assert page.total_count == 5
                await memory.close()
            assert await self.seen_by_owner(pool) == before
            assert pool.get_idle_size() == pool.get_size() == 2
        assert connections.most == 2
        schemas = "SELECT schemaname FROM pg_tables WHERE tablename = 'documents' ORDER BY 1"
        assert fetch(database_url, schemas) == [("documents",), ("llmemory",), ("users",)]

    async def seen_by_owner(self, pool: asyncpg.Pool) -> list[Any]:
        """What the owner of a pool meets on each of its connections."""
        connections = [await pool.acquire() for _ in range(pool.get_size())]
        try:
            seen = [
                [
                    connection.get_server_pid(),
                    await connection.fetchval("SHOW search_path"),
                    [tuple(row) for row in await connection.fetch(SETTINGS)],
                    tuple(await connection.fetchrow(JSON)),
                ]
                for connection in connections
            ]
            return sorted(seen)
        finally:
            for connection in connections:
                await pool.release(connection)

    async def test_codecs_and_resets_of_the_owners_own(self, database_url: str) -> None:
        async def prepare(connection: Any) -> None:
            await connection.execute("SET search_path TO information_schema")
            for kind in ("json", "jsonb"):
                await connection.set_type_codec(
                    kind, encoder=repr, decoder=lambda value: ["own", value], schema="pg_catalog"
                )

        async def keep_all(connection: Any) -> None:
            """Leave the connection as it is, search path included."""

        async with asyncpg.create_pool(
            database_url, min_size=1, max_size=1, init=prepare, reset=keep_all
        ) as pool:
            before = await self.seen_by_owner(pool)
            assert before[0][1] == "information_schema"
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
            assert await add_and_list(memory) == ["leave"]
            document = (await memory.list_documents("acme")).documents[0]
            read = await memory.get_document("acme", document.document_id)
            assert read.metadata == {"of": "leave"}
            await memory.update_document("acme", document.document_id, document_name="Changed")
            await memory.close()
            assert await self.seen_by_owner(pool) == before

    async def test_calls_that_fail_or_are_cancelled_give_their_connection_back(
        self, database_url: str
    ) -> None:
        async with pgdbm_pool(database_url, 1) as pool:
            before = await self.seen_by_owner(pool)
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
            await memory.initialize()
            fetch(database_url, "ALTER TABLE llmemory.chunks ADD CHECK (content NOT LIKE '%no%')")
            with pytest.raises(Exception, match="refused"):
                await memory.add_document("acme", "a", "no")
            for pause_s in (0.0, 0.001, 0.002, 0.005, 0.01):
                call = asyncio.ensure_future(add_and_list(memory))
                await asyncio.sleep(pause_s)
                call.cancel()
                await asyncio.wait([call])
            assert await memory.search("acme", "leave") is not None
            await memory.close()
            (found,) = await self.seen_by_owner(pool)
            # A call that was cancelled within a statement costs its connection.
            assert found[1:] == before[0][1:]

    async def test_a_connection_that_the_server_ends_is_replaced(self, database_url: str) -> None:
        async with pgdbm_pool(database_url, 1) as pool:
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
            await memory.initialize()
            is_enough = asyncio.Event()
            ending = asyncio.create_task(self.end_connections(database_url, is_enough))
            with pytest.raises(StorageUnavailable):
                await self.search_on_and_on(memory)
            is_enough.set()
            await ending
            assert await memory.search("acme", "leave") == []

    async def test_connections_that_were_ended_while_idle_are_not_noticed(
        self, database_url: str
    ) -> None:
        async with pgdbm_pool(database_url, 3) as pool:
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
            await memory.initialize()
            await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.05)") for _ in range(3)))
            assert pool.get_idle_size() == 3
            fetch(database_url, END_OTHER_CONNECTIONS)
            assert await memory.search("acme", "leave") == []

    async def search_on_and_on(self, memory: AsyncMemory) -> None:
        while True:
            await memory.search("acme", "leave")

    async def end_connections(self, url: str, is_enough: asyncio.Event) -> None:
        # Again and again: one that is idle just then is replaced without anybody's noticing.
        connection = await asyncpg.connect(url)
        while not is_enough.is_set():
            await connection.fetchval(END_OTHER_CONNECTIONS)
            await asyncio.sleep(0.003)
        await connection.close()

    async def test_an_empty_database_gets_pgvector_where_others_find_it(
        self, empty_database_url: str
    ) -> None:
        async with pgdbm_pool(empty_database_url) as pool:
            memory = AwordMemory(pool=pool, schema="Ten ant", embedder=HashEmbedder())
            assert await add_and_list(memory) == ["leave"]
        place = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
        assert fetch(empty_database_url, place) == [("public",)]

    async def test_pgvector_in_a_schema_of_its_own(self, empty_database_url: str) -> None:
        fetch(empty_database_url, 'CREATE SCHEMA "Ext ensions"')
        fetch(empty_database_url, 'CREATE EXTENSION vector SCHEMA "Ext ensions"')
        async with pgdbm_pool(empty_database_url) as pool:
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
            assert await add_and_list(memory) == ["leave"]

    async def test_a_pool_without_a_free_connection(self, database_url: str) -> None:
        async with pgdbm_pool(database_url, 1) as pool:
            settings = Settings(pool_timeout_s=0.05)
            memory = AwordMemory(pool=pool, embedder=HashEmbedder(), settings=settings)
            async with pool.acquire():
                with pytest.raises(StorageUnavailable, match="became free in time"):
                    await memory.search("acme", "leave")
            assert await memory.search("acme", "leave") == []

    async def test_a_closed_pool(self, database_url: str) -> None:
        async with pgdbm_pool(database_url, 1) as pool:
            memory = AwordMemory(pool=pool, embedder=HashEmbedder())
        with pytest.raises(ClosedError, match="pool"):
            await memory.search("acme", "leave")

    def test_a_pool_of_another_event_loop_is_refused(self, database_url: str) -> None:
        async def main() -> None:
            async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
                memory = AwordMemory(pool=pool, embedder=HashEmbedder())
                await memory.initialize()
                with pytest.raises(ConfigurationError, match="event loop"):
                    await asyncio.to_thread(asyncio.run, memory.search("acme", "leave"))
                assert await memory.search("acme", "leave") == []

        asyncio.run(main())

    async def test_a_manager_that_connects_later(self, database_url: str) -> None:
        config = DatabaseConfig(
            connection_string=database_url,
            schema="own",
            min_connections=1,
            max_connections=2,
        )
        manager = AsyncDatabaseManager(config)
        memory = AwordMemory.from_db_manager(manager, embedder=HashEmbedder())
        with pytest.raises(ConfigurationError, match="connect"):
            await memory.initialize()
        await manager.connect()
        assert await add_and_list(memory) == ["leave"]
        assert memory.schema == "own"
        assert await manager.fetch_value("SHOW search_path") == '"own", public'
        await manager.disconnect()
        AsyncDatabaseManager._pool_registry.clear()

    async def test_which_schema_a_manager_means(self, database_url: str) -> None:
        async with pgdbm_pool(database_url) as pool:
            embedder = HashEmbedder()
            for given, wanted in ((None, "llmemory"), ("public", "llmemory"), ("own", "own")):
                manager = AsyncDatabaseManager(pool=pool, schema=given)
                assert AwordMemory.from_db_manager(manager, embedder=embedder).schema == wanted
            memory = AwordMemory.from_db_manager(manager, schema="mine", embedder=embedder)
            assert memory.schema == "mine"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "count"), [("engine", 100), ("memory", 10), ("pgdbm", 10)])
@pytest.mark.direct("counts the server's connections, which are the pooler's")
async def test_many_schemas_on_one_engine(kind: str, count: int, database_url: str) -> None:
    """At most the pool's connections, each schema migrated on its own, nothing mixed up."""
    named = url_named(database_url, "many")
    schemas = [f"tenant_{number}" for number in range(count)]
    embedder = HashEmbedder()
    size = 4

    async def run(memories: list[AsyncMemory], before: Any) -> None:
        # What the pool's owner had on each connection before is there afterwards.
        async with Connections(database_url, "many") as connections:
            found = await together(*map(add_and_list, memories, schemas))
            assert found == [[schema] for schema in schemas]
            hits = await together(*(memory.search("acme", "about") for memory in memories))
            assert [[hit.document_name for hit in one] for one in hits] == found
        assert connections.most <= size
        await before()

    if kind == "pgdbm":
        async with pgdbm_pool(
            named, size, server_settings={"application_name": "many"}, lock_timeout_ms=60_000
        ) as pool:
            managers = [AsyncDatabaseManager(pool=pool, schema=schema) for schema in schemas]
            children = [
                AwordMemory.from_db_manager(manager, embedder=embedder) for manager in managers
            ]
            before = await TestPoolsOfAsyncpg().seen_by_owner(pool)

            async def unchanged() -> None:
                assert await TestPoolsOfAsyncpg().seen_by_owner(pool) == before

            await run(list(children), unchanged)
    else:
        engine = create_async_engine(
            with_driver(database_url, "postgresql+asyncpg"),
            pool_size=size,
            max_overflow=0,
            connect_args={"server_settings": {"application_name": "many"}},
        )
        parent = AwordMemory(pool=engine, embedder=embedder)
        if kind == "memory":
            settings = Settings(pool_size=size, pool_overflow=0)
            parent = AwordMemory(named, embedder=embedder, settings=settings)
        shared = parent.pool if kind == "memory" else engine
        made = [AwordMemory(pool=shared, schema=schema, embedder=embedder) for schema in schemas]

        async def nothing_left() -> None:
            used = await parent._database.engine()
            connections = [await used.connect() for _ in range(size)]
            for connection in connections:
                path = await connection.execute(text("SHOW search_path"))
                assert path.scalar_one() == '"$user", public'
                changed = {name for name, _ in await connection.execute(text(SETTINGS))}
                assert not changed & {"search_path", "statement_timeout", "lock_timeout"}
                await connection.close()

        await run(list(made), nothing_left)
        await parent.close()
        await engine.dispose()
    versions = "SELECT count(*) FROM pg_tables WHERE tablename = 'llmemory_version'"
    assert fetch(database_url, versions) == [(count + 1,)]
