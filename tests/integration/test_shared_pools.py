"""Several memories on one engine, a schema each: what they share and what they leave."""

from __future__ import annotations

import asyncio

import pytest
from integration.helpers import together
from integration.shared_connections import Connections, add_and_list, url_named
from plugins.server import with_driver
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import (
    AwordMemory,
    ClosedError,
    ConfigurationError,
    HashEmbedder,
    Settings,
)

pytestmark = pytest.mark.anyio


class TestTheEngineOfAMemory:
    @pytest.mark.direct("counts the server's connections, which are the pooler's")
    async def test_child_and_parent_use_the_same_connections(self, database_url: str) -> None:
        settings = Settings(pool_size=2, pool_overflow=0)
        parent = AwordMemory(
            url_named(database_url, "one-pool"), embedder=HashEmbedder(), settings=settings
        )
        # Before the parent has connected, and after.
        children = [AwordMemory(pool=parent.pool, schema="before")]
        await parent.initialize()
        children.append(AwordMemory(pool=parent.pool, schema="after"))
        children.append(AwordMemory(pool=children[0].pool, schema="grandchild"))
        async with Connections(database_url, "one-pool") as connections:
            names = await together(
                *(add_and_list(memory, f"word{n}") for n, memory in enumerate(children)),
                *(parent.search("acme", "leave") for _ in range(10)),
            )
        assert names[:3] == [["word0"], ["word1"], ["word2"]]
        assert 1 <= connections.most <= 2
        for child in children:
            await child.close()
            with pytest.raises(ClosedError, match="This memory is closed"):
                await child.search("acme", "leave")
        assert await add_and_list(parent) == ["leave"]
        await parent.close()

    async def test_the_parents_close_ends_it_for_all(self, database_url: str) -> None:
        parent = AwordMemory(database_url, embedder=HashEmbedder())
        child = AwordMemory(pool=parent.pool, schema="child")
        grandchild = AwordMemory(pool=child.pool, schema="grandchild")
        assert await add_and_list(grandchild) == ["leave"]
        await child.close()
        for memory in (AwordMemory(pool=child.pool), grandchild):
            with pytest.raises(ClosedError, match="whose pool this one shares is closed"):
                await memory.search("acme", "leave")
        await parent.close()
        late = AwordMemory(pool=parent.pool, schema="late")
        for call in (late.initialize, late.health, lambda: late.add_document("acme", "a", "b")):
            with pytest.raises(ClosedError, match="close that one last"):
                await call()

    async def test_embedder_and_settings_come_from_the_parent(self, database_url: str) -> None:
        mine, theirs = HashEmbedder(16), HashEmbedder(32)
        parent = AwordMemory(database_url, embedder=theirs, settings=Settings(chunk_size=77 * 7))
        child = AwordMemory(pool=parent.pool, schema="child")
        assert child.embedder is theirs
        assert child.settings.chunk_size == 77 * 7
        assert AwordMemory(pool=parent.pool, embedder=mine).embedder is mine
        assert AwordMemory(pool=parent.pool, settings=Settings()).embedder is theirs
        with_key = AwordMemory(pool=parent.pool, openai_api_key="sk-test")
        assert with_key.embedder.model == "text-embedding-3-small"
        await parent.close()

    def test_one_pool_in_several_event_loops(self, database_url: str) -> None:
        parent = AwordMemory(database_url, embedder=HashEmbedder())
        child = AwordMemory(pool=parent.pool, schema="child")
        for count in range(1, 4):
            assert len(asyncio.run(add_and_list(child))) == count
            assert len(asyncio.run(add_and_list(parent))) == count
        asyncio.run(child.close())
        assert len(asyncio.run(add_and_list(parent))) == 4
        asyncio.run(parent.close())

    async def test_an_engine_is_lent_as_well(self, database_url: str) -> None:
        engine = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
        parent = AwordMemory.from_engine(engine, schema="one", embedder=HashEmbedder())
        child = AwordMemory(pool=parent.pool, schema="two")
        direct = AwordMemory(pool=engine, schema="two", embedder=parent.embedder)
        assert await add_and_list(child) == ["leave"]
        assert await add_and_list(direct) == ["leave", "leave"]
        await parent.close()
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await engine.dispose()


def test_arguments_that_contradict_each_other() -> None:
    embedder = HashEmbedder()
    parent = AwordMemory("postgresql://localhost/none", embedder=embedder)
    with pytest.raises(ConfigurationError, match="one of them"):
        AwordMemory("postgresql://localhost/none", pool=parent.pool)
    with pytest.raises(ConfigurationError, match="not both"):
        AwordMemory(pool=parent.pool, embedder=embedder, openai_api_key="sk-test")
    with pytest.raises(ConfigurationError, match="pool must be"):
        AwordMemory(pool="postgresql://localhost/none", embedder=embedder)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="AsyncDatabaseManager"):
        AwordMemory.from_db_manager(parent.pool, embedder=embedder)
