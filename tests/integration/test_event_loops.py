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
from integration.helpers import add_and_search, fetch, together

from llmemory import (
    AsyncMemory,
    ClosedError,
    HashEmbedder,
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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_one_run_after_the_other(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    for number in range(1, 6):
        assert asyncio.run(add_and_search(memory)) == number
        # Each loop's connections go with it.
        assert open_connections() == 0
    asyncio.run(memory.close())
    with pytest.raises(ClosedError):
        asyncio.run(add_and_search(memory))
    assert open_connections() == 0


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_initialized_in_one_loop_used_in_another(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    asyncio.run(memory.initialize())
    assert asyncio.run(add_and_search(memory)) == 1
    asyncio.run(memory.close())
    assert open_connections() == 0


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_several_calls_at_once_in_each_run(
    memory: AsyncMemory, open_connections: Callable[[], int]
) -> None:
    async def many() -> None:
        await together(*(add_and_search(memory) for _ in range(20)))

    for _ in range(3):
        asyncio.run(many())
        assert open_connections() == 0


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
def test_closed_after_its_loop(memory: AsyncMemory, open_connections: Callable[[], int]) -> None:
    asyncio.run(add_and_search(memory))
    asyncio.run(memory.close())
    asyncio.run(memory.close())
    assert open_connections() == 0


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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
