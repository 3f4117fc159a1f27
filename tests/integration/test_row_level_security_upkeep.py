"""Row level security and the work for all owners: workers, upkeep, migrations, health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from integration.helpers import fetch, plain, rows
from plugins.guarded import GUARDED, HOSTILE, Guarded
from plugins.memories import MakeMemory
from plugins.plans import indexes_read
from plugins.server import with_driver
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, ConfigurationError, HashEmbedder, Settings
from llmemory.schema import migrate, row_level_security
from llmemory.schema.prerequisites import prepare_schema

pytestmark = pytest.mark.anyio


async def test_work_for_all_owners_has_a_role_of_its_own(
    served: AsyncMemory, upkeep: AsyncMemory, guarded: Guarded
) -> None:
    for owner in ("a", "b", "c"):
        await served.add_document(owner, "Note", f"Note of {owner}.", embed="later")
    for call in (
        lambda: served.process_pending_embeddings(),
        lambda: served.run_worker(should_stop=lambda: True),
        lambda: served.list_jobs(),
        lambda: served.requeue_jobs(),
    ):
        with pytest.raises(ConfigurationError, match="all-owners-role"):
            await call()
    assert (await served.health()).queue is None
    assert [job.owner_id for job in await served.list_jobs("a")] == ["a"]
    assert await served.process_pending_embeddings("a") == 1
    assert rows(guarded.superuser)["embedding_jobs"] == 2
    assert len(await upkeep.list_jobs()) == 2
    queue = (await upkeep.health()).queue
    assert queue is not None
    assert queue.waiting == 2
    assert await upkeep.process_pending_embeddings() == 2
    assert rows(guarded.superuser)["embeddings"] == 3


async def test_upkeep(
    guarded: Guarded,
    make_memory: MakeMemory,
    plans_of: Callable[[AsyncEngine], Any],
) -> None:
    settings = Settings(row_level_security=True, hnsw_owner_vectors=100, word_count_chunks=100)
    served = make_memory(guarded.application, settings=GUARDED)
    await served.add_documents(
        {"owner_id": owner, "document_name": str(n), "content": f"Rule number {n} of {owner}."}
        for owner in ("large", "small")
        for n in range(4000 if owner == "large" else 3)
    )
    with pytest.raises(ConfigurationError, match="owns"):
        await served.maintain()
    upkeep = make_memory(guarded.upkeep, settings=settings)
    result = await upkeep.maintain()
    assert (result.indexes_built, result.owners_counted) == (1, 1)
    assert (await upkeep.maintain()).tables_analyzed == []
    # Whoever does not see the rows must not take the index for outgrown.
    fetch(guarded.superuser, "DROP POLICY llmemory_all_owners ON llmemory.embeddings")
    with pytest.raises(ConfigurationError, match="all-owners-role"):
        await upkeep.maintain()
    engine = create_async_engine(with_driver(guarded.application, "postgresql+asyncpg"))
    searcher = make_memory(engine=engine, settings=settings)
    await searcher.initialize()
    with plans_of(engine) as nodes:
        assert len(await searcher.search("large", "number 7", search_type="vector")) == 10
    assert any(name.startswith("hnsw_") for name in indexes_read(nodes))
    await engine.dispose()


async def test_changing_the_model(
    served: AsyncMemory, upkeep: AsyncMemory, guarded: Guarded, make_memory: MakeMemory
) -> None:
    for owner in HOSTILE:
        await served.add_document(owner, "Note", f"Note of {owner}.")
    smaller = HashEmbedder(dimensions=32)
    for call in (lambda: served.reembed(smaller), lambda: served.drop_space(1)):
        with pytest.raises(ConfigurationError, match="owns"):
            await call()
    with pytest.raises(ConfigurationError, match="all-owners-role"):
        await served.list_spaces()
    changed = await upkeep.reembed(smaller)
    assert changed.embeddings_created == len(HOSTILE)
    # A memory of the former model feeds the new one too.
    await served.add_document("later", "Note", "Of both.")
    assert await upkeep.process_pending_embeddings() == 1
    searcher = make_memory(guarded.application, settings=GUARDED, embedder=smaller)
    for memory in (served, searcher):
        for owner in (*HOSTILE, "later"):
            (hit,) = await memory.search(owner, "note", search_type="vector")
            assert hit.document_name == "Note"
    assert await upkeep.drop_space(1) == len(HOSTILE) + 1
    assert [space.state for space in await upkeep.list_spaces()] == ["dropped", "in use"]


async def test_health_warns(
    guarded: Guarded,
    served: AsyncMemory,
    upkeep: AsyncMemory,
    memory: AsyncMemory,
    make_memory: MakeMemory,
) -> None:
    assert (await memory.health()).warnings == []
    for quiet in (served, upkeep):
        health = await quiet.health()
        assert (health.healthy, health.warnings) == (True, [])
    (warning,) = (await make_memory(guarded.superuser).health()).warnings
    assert "is a superuser" in warning
    name = guarded.application.partition("//")[2].partition(":")[0]
    fetch(guarded.superuser, f"ALTER ROLE {name} BYPASSRLS")
    try:
        (warning,) = (await served.health()).warnings
    finally:
        fetch(guarded.superuser, f"ALTER ROLE {name} NOBYPASSRLS")
    assert f'"{name}" is BYPASSRLS' in warning
    for change in ("NO FORCE", "DISABLE"):
        fetch(guarded.superuser, f"ALTER TABLE llmemory.chunks {change} ROW LEVEL SECURITY")
        (warning,) = (await served.health()).warnings
        assert "on chunks." in warning
    unprotected = make_memory(settings=GUARDED)
    superuser, tables = (await unprotected.health()).warnings
    assert "superuser" in superuser
    assert "documents" in tables


async def test_migrating(guarded: Guarded, upkeep: AsyncMemory) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    role = guarded.upkeep.partition("//")[2].partition(":")[0]
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(guarded.superuser),
        poolclass=NullPool,
    )

    def differences() -> Any:
        with engine.connect() as connection:
            options = dict(migrate.context_options("llmemory"))
            context = MigrationContext.configure(connection, opts=options)
            return compare_metadata(context, options["target_metadata"])

    await upkeep.add_document("acme", "Leave", "25 days.")
    assert differences() == []
    with engine.begin() as connection:
        migrate.downgrade(connection, "llmemory", "0001")
        migrate.upgrade(connection, "llmemory")
    assert differences() == []
    with engine.begin() as connection:
        # Made by a revision, it belongs to another role and has no policies yet.
        connection.exec_driver_sql(f"ALTER TABLE llmemory.lexical_statistics OWNER TO {role}")
    (warning,) = (await upkeep.health()).warnings
    assert "on lexical_statistics." in warning
    with engine.begin() as connection:
        row_level_security.enable(connection, all_owners_roles=[role])
    assert (await upkeep.health()).warnings == []
    assert await upkeep.search("acme", "days", search_type="text")
    with engine.begin() as connection:
        row_level_security.disable(connection)
        assert row_level_security.warnings(connection, "llmemory", is_expected=False) == []
    assert fetch(guarded.superuser, "SELECT * FROM pg_policies") == []
    assert differences() == []


async def test_a_migration_fails_over_rows_that_it_does_not_see(guarded: Guarded) -> None:
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(plain(guarded.upkeep)),
        poolclass=NullPool,
    )
    shown = text("SHOW row_security")
    with engine.connect() as connection:
        prepare_schema(connection, "llmemory")
        assert connection.execute(shown).scalar() == "on"
    fetch(guarded.superuser, "DROP POLICY llmemory_all_owners ON llmemory.documents")
    with engine.connect() as connection:
        prepare_schema(connection, "llmemory")
        assert connection.execute(shown).scalar() == "off"
        with pytest.raises(Exception, match="row-level security"):
            connection.execute(text("UPDATE llmemory.documents SET language = 'english'"))
