"""Connection strings and engines that cannot work, closed memories, and servers that go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from integration.helpers import fetch, rows
from integration.refusals import CALLS, SECRET, assert_no_secret, changed, closed_port
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import (
    AsyncMemory,
    ClosedError,
    ConfigurationError,
    HashEmbedder,
    LLMemoryError,
    Settings,
    StorageUnavailable,
)

pytestmark = pytest.mark.anyio

DRIVERS = pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])


async def fails(
    url: str,
    error: type[LLMemoryError],
    *words: str,
    call: Callable[[AsyncMemory], Any] | None = None,
) -> LLMemoryError:
    memory = AsyncMemory(url, embedder=HashEmbedder())
    try:
        with pytest.raises(LLMemoryError) as caught:
            await (call(memory) if call is not None else memory.initialize())
        assert type(caught.value) is error, caught.value
        assert any(word in str(caught.value) for word in words), caught.value
        assert_no_secret(caught.value)
        return caught.value
    finally:
        await memory.close()


@DRIVERS
async def test_an_unreachable_server(driver: str) -> None:
    url = f"{driver}://me:{SECRET}@127.0.0.1:{closed_port()}/app"
    for call in CALLS:
        await fails(url, StorageUnavailable, "could not be reached", call=call)


@DRIVERS
async def test_a_host_that_does_not_exist(driver: str) -> None:
    await fails(f"{driver}://me:{SECRET}@no-such-host.invalid/app", StorageUnavailable, "reached")


@DRIVERS
@pytest.mark.direct("PgBouncer does not tell why it refuses a login")
async def test_a_role_that_does_not_exist(database_url: str, driver: str) -> None:
    url = changed(with_driver(database_url, driver), user=f"nobody_here:{SECRET}")
    await fails(url, ConfigurationError, "user", "password")


@DRIVERS
@pytest.mark.direct("PgBouncer does not tell why it refuses a login")
async def test_a_database_that_does_not_exist(database_url: str, driver: str) -> None:
    url = changed(
        with_driver(database_url, driver), user=f"postgres:{SECRET}", path="/no_such_database"
    )
    await fails(url, ConfigurationError, "does not exist")


@DRIVERS
@pytest.mark.parametrize(
    "rest",
    [
        "user:{}@host:port/app",
        "user:{}@[::1/app",
        "user:a/{}@host/app",
        "user:a#{}@host/app",
        "user:{}@host:99999999/app",
        "user:{}@host/app?sslmode",
    ],
)
async def test_a_malformed_url_never_shows_its_password(driver: str, rest: str) -> None:
    url = f"{driver}://{rest.format(SECRET)}"
    memory = AsyncMemory(url, embedder=HashEmbedder())
    with pytest.raises(LLMemoryError) as caught:
        await memory.initialize()
    assert isinstance(caught.value, ConfigurationError | StorageUnavailable)
    assert_no_secret(caught.value)
    assert SECRET not in f"{memory!r} {memory.settings!r} {memory.settings}"
    await memory.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://host/app", "sqlite:///file.db", "host/app", "://", "postgresql:/host", "http://host"],
)
async def test_not_a_postgresql_url(url: str) -> None:
    await fails(url, ConfigurationError, "postgresql://")


@DRIVERS
@pytest.mark.parametrize(
    "query",
    [
        "sslmode=bogus",
        pytest.param("no_such_parameter=1", marks=pytest.mark.direct("PgBouncer answers it")),
        "port=abc",
    ],
)
async def test_an_unknown_parameter_of_the_url(database_url: str, driver: str, query: str) -> None:
    url = with_driver(database_url, driver)
    await fails(
        f"{url}{'&' if '?' in url else '?'}{query}",
        ConfigurationError,
        "connection string",
        query.partition("=")[0],
    )


@pytest.mark.parametrize("value", [5, b"postgresql://host/app", object(), ["a"]])
async def test_a_connection_string_is_text(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="connection"):
        AsyncMemory(value, embedder=HashEmbedder())


async def test_an_engine_is_asynchronous_and_postgresqls(database_url: str) -> None:
    engine = create_engine(with_driver(database_url, "postgresql+psycopg"))
    for wrong in (engine, "postgresql://host/app", 5):
        with pytest.raises(ConfigurationError, match=r"(?i)engine"):
            AsyncMemory.from_engine(wrong, embedder=HashEmbedder())  # type: ignore[arg-type]
    engine.dispose()
    engine_ = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
    with pytest.raises(ConfigurationError, match="not both"):
        AsyncMemory(database_url, engine=engine_, embedder=HashEmbedder())
    await engine_.dispose()


async def test_use_after_close(database_url: str) -> None:
    memory = AsyncMemory(database_url, embedder=HashEmbedder())
    document = await memory.add_document("acme", "a", "b")
    await memory.close()
    before = rows(database_url)
    for call in [
        *CALLS,
        lambda memory: memory.health(),
        lambda memory: memory.update_document("acme", document.document_id, content="c"),
        lambda memory: memory.delete_document("acme", document.document_id),
        lambda memory: memory.get_statistics("acme"),
        lambda memory: memory.search_with_documents("acme", "a"),
    ]:
        with pytest.raises(ClosedError, match="new one"):
            await call(memory)
    await memory.close()
    assert rows(database_url) == before


async def test_close_before_use(database_url: str) -> None:
    memory = AsyncMemory(database_url, embedder=HashEmbedder())
    await memory.close()
    with pytest.raises(ClosedError):
        await memory.initialize()


async def test_use_before_initialize_initializes(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    memory = make_memory(empty_database_url)
    await memory.add_document("acme", "Policy", "Staff have 25 days of leave.")
    await memory.initialize()
    assert len(await memory.search("acme", "leave")) == 1


async def test_a_server_that_ends_the_connections(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    await memory.add_document("acme", "a", "b")
    fetch(
        driver_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    for _ in range(10):
        try:
            await memory.list_documents("acme")
        except StorageUnavailable:
            continue
        break
    assert (await memory.list_documents("acme")).total_count == 1


async def test_no_free_connection(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(pool_size=1, pool_overflow=0, pool_timeout_s=0.01))
    await memory.initialize()
    async with memory._database.connect():
        with pytest.raises(StorageUnavailable, match="pool_size"):
            await memory.list_documents("acme")


async def test_health_tells_a_problem_as_a_value(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    down = make_memory(f"postgresql://me:{SECRET}@127.0.0.1:{closed_port()}/app")
    found = await down.health()
    assert not found.healthy
    assert found.latency_ms is None
    assert "could not be reached" in (found.problem or "")
    assert SECRET not in found.model_dump_json()
    missing = await make_memory(empty_database_url).health()
    assert not missing.healthy
    assert "CREATE EXTENSION" in (missing.problem or "")
    nonsense = await make_memory("mysql://host/app").health()
    assert "postgresql://" in (nonsense.problem or "")
