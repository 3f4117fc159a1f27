"""A caller's own engine, and the one event loop that it belongs to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.helpers import add_and_search, fetch
from plugins.server import with_driver
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    ClosedError,
    ConfigurationError,
    HashEmbedder,
    Memory,
)


def make_engine(url: str, **options: Any) -> AsyncEngine:
    import psycopg

    plain = "postgresql://" + url.partition("://")[2]
    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(plain),
        **options,
    )


def test_a_callers_engine_on_a_second_loop_is_refused(database_url: str) -> None:
    engine = make_engine(database_url)
    memory = AsyncMemory.from_engine(engine, embedder=HashEmbedder())

    async def second() -> None:
        for call in (
            lambda: memory.search("acme", "leave"),
            lambda: memory.add_document("acme", "a", "b"),
            lambda: memory.delete_owner("acme"),
        ):
            with pytest.raises(ConfigurationError, match="NullPool") as caught:
                await call()
            assert "event loop" in str(caught.value)

    with asyncio.Runner() as first:
        assert first.run(add_and_search(memory)) == 1
        asyncio.run(second())
        first.run(engine.dispose())
    assert fetch(database_url, "SELECT count(*) FROM llmemory.documents") == [(1,)]


def test_a_callers_engine_that_was_disposed_of_works_on_another_loop(database_url: str) -> None:
    engine = make_engine(database_url)
    memory = AsyncMemory.from_engine(engine, embedder=HashEmbedder())

    async def use() -> None:
        await add_and_search(memory)
        await engine.dispose()

    asyncio.run(use())
    asyncio.run(use())
    assert fetch(database_url, "SELECT count(*) FROM llmemory.documents") == [(2,)]


def test_a_callers_engine_without_a_pool_works_on_any_loop(database_url: str) -> None:
    engine = make_engine(database_url, poolclass=NullPool)
    memory = AsyncMemory.from_engine(engine, embedder=HashEmbedder())
    for number in range(1, 4):
        assert asyncio.run(add_and_search(memory)) == number
    asyncio.run(memory.close())


def test_close_leaves_the_callers_engine_open(database_url: str) -> None:
    async def main() -> None:
        engine = make_engine(database_url, pool_size=1, max_overflow=0)
        memories = [
            AsyncMemory.from_engine(engine, schema=schema, embedder=HashEmbedder())
            for schema in ("one", "two")
        ]
        async with memories[0] as memory:
            assert await add_and_search(memory) == 1
        with pytest.raises(ClosedError):
            await memories[0].search("acme", "leave")
        assert await memories[1].search("acme", "leave") == []
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
            await memories[1].close()
            assert (await session.execute(text("SELECT 2"))).scalar_one() == 2
        assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()

    asyncio.run(main())


def test_an_engine_with_a_pool_and_codecs_of_the_callers_own(database_url: str) -> None:
    """What an application registers on its engine must not disturb the library, nor the reverse."""
    from pgvector.asyncpg import register_vector
    from sqlalchemy import event

    async def main() -> None:
        import asyncpg

        plain = "postgresql://" + database_url.partition("://")[2]
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(plain),
            json_deserializer=lambda value: {"raw": value},
        )

        @event.listens_for(engine.sync_engine, "connect")
        def register(connection: Any, record: Any) -> None:
            connection.run_async(register_vector)

        memory = AsyncMemory.from_engine(engine, embedder=HashEmbedder())
        await memory.add_document("acme", "a", "Leave.", additional_metadata={"of": "leave"})
        (hit,) = await memory.search("acme", "leave", search_type="vector")
        assert (hit.similarity or 0) > 0
        assert hit.metadata == {"of": "leave"}
        async with engine.connect() as connection:
            value = await connection.execute(text("SELECT '[1,2]'::vector"))
            assert value.scalar_one().to_list() == [1, 2]
        await memory.close()
        await engine.dispose()

    asyncio.run(main())


def test_an_engine_of_another_database_is_refused() -> None:
    class Dialect:
        name = "sqlite"

    class Engine:
        dialect = Dialect()

    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        AsyncMemory.from_engine(Engine(), embedder=HashEmbedder())  # type: ignore[arg-type]


def test_both_drivers_on_one_database(database_url: str) -> None:
    async def main() -> None:
        memories = [
            AsyncMemory(with_driver(database_url, scheme), embedder=HashEmbedder())
            for scheme in ("postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgres")
        ]
        for number, memory in enumerate(memories, start=1):
            assert await add_and_search(memory) == number
        for memory in memories:
            await memory.close()

    asyncio.run(main())


def test_an_engine_belongs_to_one_loop_whichever_memory_uses_it(database_url: str) -> None:
    async def main() -> None:
        engine = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
        asynchronous = AsyncMemory.from_engine(engine, embedder=HashEmbedder())
        blocking = Memory.from_engine(engine, embedder=HashEmbedder())
        assert await asynchronous.search("acme", "leave") == []
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="another event loop"):
                blocking.search("acme", "leave")
        assert await asynchronous.search("acme", "leave") == []
        blocking.close()
        await engine.dispose()

    asyncio.run(main())
