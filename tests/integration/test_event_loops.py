"""One memory and several event loops, one after the other and at once."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.helpers import fetch, together
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
    SchemaTooNew,
)
from llmemory.schema import migrate

CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name = 'llmemory' AND backend_type = 'client backend'"
)


@pytest.fixture
def memory(driver_url: str) -> Iterator[AsyncMemory]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield AsyncMemory(driver_url, embedder=HashEmbedder())
        gc.collect()


@pytest.fixture
def open_connections(database_url: str) -> Callable[[], int]:
    """Count the library's connections on the server, waiting for those that are just closing."""

    def count() -> int:
        left = 0
        for _ in range(200):
            ((left,),) = fetch(database_url, CONNECTIONS)
            if not left:
                break
            fetch(database_url, "SELECT pg_sleep(0.01)")
        return left

    return count


async def add_and_search(memory: AsyncMemory, name: str = "a") -> int:
    await memory.add_document("acme", name, "Days of leave.")
    return len(await memory.search("acme", "leave", limit=100))


def test_one_run_after_the_other(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    for number in range(1, 6):
        assert asyncio.run(add_and_search(memory)) == number
        # Each loop's connections go with it.
        assert open_connections() == 0
    asyncio.run(memory.close())
    with pytest.raises(ClosedError):
        asyncio.run(add_and_search(memory))
    assert open_connections() == 0


def test_initialized_in_one_loop_used_in_another(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    asyncio.run(memory.initialize())
    assert asyncio.run(add_and_search(memory)) == 1
    asyncio.run(memory.close())
    assert open_connections() == 0


def test_several_calls_at_once_in_each_run(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    async def many() -> None:
        await together(*(add_and_search(memory) for _ in range(20)))

    for _ in range(3):
        asyncio.run(many())
        assert open_connections() == 0


def test_a_run_that_fails(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    async def fail() -> None:
        await add_and_search(memory)
        raise KeyError

    async def leave_behind() -> None:
        await memory.list_documents("acme")
        background = asyncio.ensure_future(add_and_search(memory))
        await asyncio.sleep(0)
        assert not background.done()

    with pytest.raises(KeyError):
        asyncio.run(fail())
    asyncio.run(leave_behind())
    asyncio.run(leave_behind())
    assert open_connections() == 0
    assert asyncio.run(add_and_search(memory)) >= 2


def test_a_loop_closed_without_ceremony(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    """Not asyncio.run: nobody closes the loop's generators. The next loop works all the same."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(add_and_search(memory))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    assert asyncio.run(add_and_search(memory)) == 2
    assert open_connections() == 0


def test_two_threads_with_a_loop_each(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    async def work(name: str) -> None:
        barrier.wait()
        for number in range(10):
            await add_and_search(memory, f"{name} {number}")

    def run(name: str) -> None:
        try:
            asyncio.run(work(name))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert open_connections() == 0
    assert asyncio.run(add_and_search(memory)) == 21
    asyncio.run(memory.close())


def test_closed_from_another_loop(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    ready, go_on = threading.Event(), threading.Event()
    outcome: list[Any] = []

    async def stay() -> None:
        await add_and_search(memory)
        ready.set()
        await asyncio.to_thread(go_on.wait)
        try:
            await memory.search("acme", "leave")
        except ClosedError as error:
            outcome.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(stay()))
    thread.start()
    ready.wait()
    asyncio.run(memory.close())
    go_on.set()
    thread.join()
    assert len(outcome) == 1
    gc.collect()
    assert open_connections() == 0


def test_closed_after_its_loop(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    asyncio.run(add_and_search(memory))
    asyncio.run(memory.close())
    asyncio.run(memory.close())
    assert open_connections() == 0


def test_forgotten_and_collected(database_url: str, open_connections: Callable[[], int]) -> None:
    async def use() -> None:
        for _ in range(3):
            await add_and_search(AsyncMemory(database_url, embedder=HashEmbedder()))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use())
        gc.collect()
    assert open_connections() == 0


def test_a_script_that_never_closes_ends_silently(driver_url: str) -> None:
    script = """
import asyncio, sys
from llmemory import AsyncMemory, HashEmbedder

memory = AsyncMemory(sys.argv[1], embedder=HashEmbedder())
asyncio.run(memory.initialize())
asyncio.run(memory.add_document("acme", "a", "Days of leave."))
print(len(asyncio.run(memory.search("acme", "leave"))))
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, driver_url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "1\n"
    assert run.stderr == ""


def test_fifty_first_calls_at_once(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmemory.schema import migrate

    upgrades: list[str] = []
    upgrade = migrate.upgrade

    def counted(connection: Any, schema: str, *arguments: Any) -> None:
        upgrades.append(schema)
        upgrade(connection, schema, *arguments)

    monkeypatch.setattr(migrate, "upgrade", counted)

    async def main() -> None:
        memory = AsyncMemory(empty_database_url, embedder=HashEmbedder())
        found = await together(*(memory.search("acme", "leave") for _ in range(50)))
        assert found == [[]] * 50
        await memory.close()

    asyncio.run(main())
    assert upgrades == ["llmemory"]


def test_a_first_call_that_fails_is_tried_again(database_url: str) -> None:
    fetch(database_url, "ALTER SCHEMA llmemory RENAME TO hidden")
    fetch(database_url, "UPDATE hidden.llmemory_version SET version_num = '9999'")
    fetch(database_url, "ALTER SCHEMA hidden RENAME TO llmemory")

    async def main() -> None:
        memory = AsyncMemory(database_url, embedder=HashEmbedder())
        with pytest.raises(SchemaTooNew):
            await memory.search("acme", "leave")
        fetch(database_url, f"UPDATE llmemory.llmemory_version SET version_num = '{migrate.HEAD}'")
        assert await add_and_search(memory) == 1
        await memory.close()

    asyncio.run(main())


# -- engines of the caller's ---------------------------------------------------------------------


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
