"""Searches on a streaming replica, and on the primary where it fails or is behind."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import psycopg
import pytest
from integration.helpers import PATIENCE_S, fetch, until
from plugins.clusters import Cluster
from plugins.memories import MakeMemory
from plugins.server import with_driver
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import Settings
from llmemory.database import replicas

pytestmark = pytest.mark.anyio

SEARCHES = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'llmemory'"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_searches_ask_the_replica(
    make_memory: MakeMemory,
    make_cluster: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
) -> None:
    monkeypatch.setattr(replicas, "PAUSE_S", 600)
    primary = make_cluster()
    replica = make_cluster(primary)
    assert replica.is_replica
    scheme = f"postgresql+{driver}"
    memory = make_memory(
        with_driver(primary.url, scheme),
        settings=Settings(
            replica_url=SecretStr(with_driver(replica.url, scheme)), hnsw_owner_vectors=3
        ),
    )
    for number in range(5):
        await memory.add_document("acme", f"n{number}", f"Days of leave {number}.")
    await memory.maintain()
    await until(lambda: is_caught_up(primary, replica))
    hits = await memory.search("acme", "leave")
    assert len(hits) == 5
    assert hits == await memory.search("acme", "leave", from_primary=True)
    assert fetch(replica.url, SEARCHES) == [(1,)]

    # It stops to replay: what is written now is seen only by who asks for it.
    with psycopg.connect(replica.url, autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
    await memory.add_document("acme", "new", "Leave of today.")
    assert len(await memory.search("acme", "leave")) == 5
    assert len(await memory.search("acme", "leave", from_primary=True)) == 6
    grouped = await memory.search_with_documents("acme", "leave", from_primary=True)
    assert len(grouped.documents) == 6
    async with memory._database.transaction() as mine:
        assert len(await memory.search("acme", "leave", session=mine)) == 6

    # It is killed: the primary answers, and is asked again once the replica is back.
    replica.kill()
    with anyio.fail_after(PATIENCE_S):
        # What serves its connections outlives it for a moment.
        while len(await memory.search("acme", "leave")) == 5:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert len(await memory.search("acme", "leave")) == 6
    replica.start()
    assert len(await memory.search("acme", "leave")) == 6
    assert fetch(replica.url, SEARCHES) == [(0,)]
    assert memory._replica is not None
    memory._replica._is_away_until = 0.0
    await memory.search("acme", "leave")
    assert fetch(replica.url, SEARCHES) == [(1,)]


async def test_an_engine_on_a_replica(
    make_memory: MakeMemory, make_cluster: Callable[..., Cluster]
) -> None:
    primary = make_cluster()
    replica = make_cluster(primary)
    engines = [
        create_async_engine(with_driver(cluster.url, "postgresql+asyncpg"))
        for cluster in (primary, replica)
    ]
    memory = make_memory(engine=engines[0], replica_engine=engines[1])
    await memory.add_document("acme", "n", "Days of leave.")
    await until(lambda: is_caught_up(primary, replica))
    # The primary is gone: what searches need they have.
    await engines[0].dispose()
    primary.stop()
    assert len(await memory.search("acme", "leave")) == 1
    primary.start()
    assert len(await memory.search("acme", "leave", from_primary=True)) == 1
    for engine in engines:
        await engine.dispose()


def is_caught_up(primary: Cluster, replica: Cluster) -> bool:
    ((written,),) = fetch(primary.url, "SELECT pg_current_wal_lsn()")
    ((is_there,),) = fetch(replica.url, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written)
    return bool(is_there)
