"""Engines of yours: pools of every kind, TLS, passwords that change, pings before use."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from integration.helpers import fetch, together
from plugins.memories import MakeMemory
from plugins.poolers import UNPREPARED, PgBouncer
from plugins.server import with_driver
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool

from llmemory import AsyncMemory, Settings

pytestmark = pytest.mark.anyio

BEHIND = Settings(transaction_pooler=True)
END = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class CountingPool(AsyncAdaptedQueuePool):
    """A pool of the application's own."""

    taken = 0

    def _do_get(self) -> Any:
        type(self).taken += 1
        return super()._do_get()


@pytest.mark.parametrize("pool", [NullPool, CountingPool])
async def test_pools(make_memory: MakeMemory, driver_url: str, pool: type[Any]) -> None:
    engine = create_async_engine(sqlalchemy_url(driver_url), poolclass=pool)
    memory = make_memory(engine=engine)
    await together(*(use(memory, f"owner{number}") for number in range(4)))
    assert pool is NullPool or CountingPool.taken
    await engine.dispose()


async def test_one_connection_for_all(make_memory: MakeMemory, driver_url: str) -> None:
    engine = create_async_engine(sqlalchemy_url(driver_url), poolclass=StaticPool)
    await use(make_memory(engine=engine), "acme")
    await engine.dispose()


async def test_pre_ping(make_memory: MakeMemory, driver_url: str, database_url: str) -> None:
    engine = create_async_engine(sqlalchemy_url(driver_url), pool_pre_ping=True)
    memory = make_memory(engine=engine)
    await use(memory, "acme")
    assert fetch(database_url, END) != [(0,)]
    await use(memory, "acme")
    await engine.dispose()


async def test_tls(
    make_memory: MakeMemory, make_pooler: Callable[..., PgBouncer], database_url: str
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pooler = make_pooler()
    pooler.stop()
    for name, content in (
        ("key.pem", certificate.private_key_pem),
        ("cert.pem", certificate.cert_chain_pems[0]),
        ("ca.pem", authority.cert_pem),
    ):
        pooler.write(name, content.bytes().decode())
    pooler.settings |= {
        "client_tls_sslmode": "require",
        "client_tls_key_file": pooler.folder / "key.pem",
        "client_tls_cert_file": pooler.folder / "cert.pem",
    }
    pooler.start()
    url = pooler.url(database_url)
    trusting = ssl.create_default_context(cafile=str(pooler.folder / "ca.pem"))
    engine = create_async_engine(
        with_driver(url, "postgresql+asyncpg"),
        connect_args={"ssl": trusting, **UNPREPARED["asyncpg"]},
    )
    await use(make_memory(engine=engine, settings=BEHIND), "acme")
    await engine.dispose()
    query = f"?sslmode=verify-full&sslrootcert={pooler.folder}/ca.pem"
    for driver in ("asyncpg", "psycopg"):
        checked = with_driver(url, f"postgresql+{driver}") + query
        await use(make_memory(checked, settings=BEHIND), driver)
    (secured, *_) = {row["tls"] for row in pooler.show("CLIENTS") if row["tls"]}
    assert secured.startswith("TLS")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_password_for_each_connection(
    make_memory: MakeMemory,
    make_pooler: Callable[..., PgBouncer],
    database_url: str,
    driver: str,
) -> None:
    pooler = make_pooler()
    pooler.stop()
    pooler.settings |= {"auth_type": "plain", "auth_file": pooler.folder / "users"}
    pooler.write("users", '"postgres" "token-1"')
    pooler.start()
    token = "token-1"
    engine = create_async_engine(
        with_driver(pooler.url(database_url), f"postgresql+{driver}"),
        connect_args=UNPREPARED[driver],
        poolclass=NullPool,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def give_password(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = token

    memory = make_memory(engine=engine, settings=BEHIND)
    await use(memory, "acme")
    # The next token counts from now on, and the one before no more.
    pooler.stop()
    pooler.write("users", '"postgres" "token-2"')
    pooler.start()
    health = await memory.health()
    assert not health.healthy
    token = "token-2"
    await use(memory, "acme")


def sqlalchemy_url(url: str) -> str:
    return url if "+" in url else with_driver(url, "postgresql+asyncpg")


async def use(memory: AsyncMemory, owner: str) -> None:
    """Go every way to the database: a COPY, a search, a worker's turn, another search."""
    await memory.add_document(owner, "n", "Days of leave.")
    assert await memory.search(owner, "leave")
    await memory.add_document(owner, "later", "More days of leave.", embed="later")
    assert await memory.process_pending_embeddings(owner) == 1
    assert (await memory.search_with_documents(owner, "more")).documents
