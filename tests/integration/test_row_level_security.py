"""Row level security: who sees which rows, what bulk adding, sessions, workers and upkeep do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from integration.helpers import TABLES, fetch, paragraphs, plain, rows, writes
from plugins.guarded import Guarded
from plugins.memories import MakeMemory
from plugins.plans import indexes_read
from plugins.server import with_driver
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    DocumentNotFoundError,
    HashEmbedder,
    Settings,
    models,
)
from llmemory.schema import migrate, row_level_security
from llmemory.schema.prerequisites import prepare_schema

pytestmark = pytest.mark.anyio

GUARDED = Settings(row_level_security=True)
HOSTILE = [
    "o'reilly",
    "x' OR 'a'='a",
    "back\\slash",
    "\\'; DROP",
    "%s %(a)s",
    ":name",
    "''",
    "日本",
]
OWNED = text(
    "SELECT table_name FROM information_schema.columns "
    "WHERE table_schema = 'llmemory' AND column_name = 'owner_id'"
)


@pytest.fixture(params=["postgresql", "postgresql+psycopg"], ids=["asyncpg", "psycopg"])
def served(
    request: pytest.FixtureRequest, guarded: Guarded, make_memory: MakeMemory
) -> AsyncMemory:
    """A memory of the application's role, for one driver after the other."""
    return make_memory(with_driver(guarded.application, request.param), settings=GUARDED)


@pytest.fixture
def upkeep(guarded: Guarded, make_memory: MakeMemory) -> AsyncMemory:
    """A memory of the role that sees all rows."""
    return make_memory(guarded.upkeep, settings=GUARDED)


@pytest.mark.parametrize("embed", ["now", "later"])
async def test_adding_and_reading(served: AsyncMemory, guarded: Guarded, embed: Any) -> None:
    for owner in HOSTILE:
        await served.add_document(owner, "Note", f"Note of {owner}.", external_id=1, embed=embed)
        again = await served.add_document(owner, "Note", "Changed.", external_id=1, embed=embed)
        assert again.status == "replaced"
    for owner in HOSTILE:
        listed = await served.list_documents(owner)
        assert [found.document_name for found in listed.documents] == ["Note"]
        found = await served.search(owner, "changed", search_type="text")
        assert [hit.content for hit in found] == ["Changed."]
    assert rows(guarded.superuser)["documents"] == len(HOSTILE)


async def test_bulk_of_many_owners(served: AsyncMemory, guarded: Guarded) -> None:
    def documents() -> Any:
        for number in range(60):
            owner = HOSTILE[number % len(HOSTILE)]
            yield {
                "owner_id": owner,
                "document_name": f"{owner} {number}",
                "content": paragraphs(f"word{number}", "shared", length=700),
                "external_id": number,
            }

    first = await served.add_documents(documents())
    assert {result.status for result in first} == {"created"}
    assert {result.status for result in await served.add_documents(documents())} == {"unchanged"}
    assert rows(guarded.superuser)["embeddings"] == sum(result.chunks_created for result in first)
    for number, added in enumerate(first):
        # Each owner's vectors are those of the owner's own chunks.
        owner = HOSTILE[number % len(HOSTILE)]
        (best, *_) = await served.search(owner, f"word{number}", search_type="vector", limit=1)
        assert best.document_id == added.document_id


async def test_nothing_is_seen_without_an_owner(served: AsyncMemory, guarded: Guarded) -> None:
    await served.add_document("acme", "Now", "Vectors now.")
    await served.add_document("acme", "Later", "Vectors later.", embed="later")
    fetch(
        guarded.superuser,
        "INSERT INTO llmemory.lexical_statistics VALUES ('acme', 0, 2, now())",
    )
    assert all(rows(guarded.superuser).values())
    with psycopg.connect(plain(guarded.application), autocommit=True) as connection:

        def seen() -> dict[str, int]:
            counts = (connection.execute(f"SELECT count(*) FROM llmemory.{t}") for t in TABLES)
            return {name: count.fetchone()[0] for name, count in zip(TABLES, counts, strict=True)}

        assert not any(seen().values())
        with connection.transaction():
            connection.execute("SET LOCAL llmemory.owner_id = 'acme'")
            assert all(seen().values())
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(
                    "INSERT INTO llmemory.lexical_statistics VALUES ('other', 0, 2, now())"
                )
        # The setting is empty now, not missing.
        assert not any(seen().values())
        assert connection.execute("DELETE FROM llmemory.documents").rowcount == 0


async def test_every_table_with_owners_is_forced(guarded: Guarded) -> None:
    found = fetch(
        guarded.superuser,
        """
        SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'llmemory'::regnamespace AND c.relkind IN ('r', 'p')
          AND a.attname = 'owner_id'
        ORDER BY 1
        """,
    )
    assert found == [(name, True) for name in sorted(TABLES)]


async def test_a_memory_that_names_no_owner_is_shown_nothing(
    guarded: Guarded, served: AsyncMemory, make_memory: MakeMemory
) -> None:
    added = await served.add_document("acme", "Leave", "25 days.")
    careless = make_memory(guarded.application)
    assert await careless.search("acme", "days") == []
    with pytest.raises(DocumentNotFoundError):
        await careless.get_document("acme", added.document_id)
    with pytest.raises(ConfigurationError, match="row level"):
        await careless.add_document("acme", "Leave", "25 days.")
    assert "row_level_security=True" in (await careless.health()).warnings[0]


async def test_a_read_takes_three_round_trips(
    served: AsyncMemory, round_trips: Callable[[AsyncMemory], Any]
) -> None:
    await served.add_document("acme", "Leave", "25 days.")
    await served.search("acme", "days")
    for read in (lambda: served.search("acme", "days"), lambda: served.list_documents("acme")):
        with round_trips(served) as sent:
            await read()
        assert sent[0] == "BEGIN; SET LOCAL llmemory.owner_id = 'acme'"
        assert sent[-1] == "COMMIT"
        assert len(sent) == 3


async def test_nobody_else_pays(
    memory: AsyncMemory, round_trips: Callable[[AsyncMemory], Any]
) -> None:
    await memory.initialize()
    with round_trips(memory) as sent:
        await memory.add_document("acme", "Leave", "25 days.")
        await memory.list_documents("acme")
        await memory.delete_owner("acme")
    assert not [each for each in sent if "llmemory.owner_id" in each or "TEMPORARY" in each]
    assert [each for each in writes(sent) if each.startswith("COPY")]


async def test_a_callers_transaction_keeps_its_owner(served: AsyncMemory, guarded: Guarded) -> None:
    added = await served.add_document("acme", "Leave", "25 days.")
    missing = str(uuid4())
    engine = create_async_engine(with_driver(guarded.application, "postgresql+psycopg"))
    async with engine.connect() as connection:

        async def owner() -> Any:
            return (
                await connection.execute(text("SELECT current_setting('llmemory.owner_id', true)"))
            ).scalar()

        for before in (None, "mine"):
            if before is not None:
                await connection.execute(row_level_security.owner_setting(before))
            assert await served.search("acme", "days", session=connection)
            await served.add_document("other", "Note", "Uncommitted.", session=connection)
            assert (await served.list_documents("other", session=connection)).total_count == 1
            await served.add_documents(
                [
                    {"owner_id": name, "document_name": "n", "content": "c", "external_id": "e"}
                    for name in ("b", "a", "b2")
                ],
                session=connection,
            )
            with pytest.raises(DocumentNotFoundError):
                await served.get_document("acme", missing, session=connection)
            with pytest.raises(DocumentNotFoundError):
                await served.delete_document("acme", missing, session=connection)
            assert await owner() in (before, "" if before is None else before)
            await connection.rollback()
        assert (await served.list_documents("other", session=connection)).total_count == 0
        await served.delete_document("acme", added.document_id, session=connection)
        await connection.commit()
    await engine.dispose()
    assert not any(rows(guarded.superuser).values())


async def test_statements_of_the_caller(served: AsyncMemory, guarded: Guarded) -> None:
    owner = HOSTILE[3]
    engine = create_async_engine(with_driver(guarded.application, "postgresql+asyncpg"))
    document = await served.build_document(owner, "Built", "Built by a session.")
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        await session.execute(row_level_security.owner_setting(owner))
        session.add(document)
    statement = await served.search_statement(owner, "session")
    async with AsyncSession(engine) as session:
        assert (await session.execute(statement)).all() == []
        await session.execute(row_level_security.owner_setting(owner))
        assert [row.content for row in await session.execute(statement)] == ["Built by a session."]
        assert len((await session.scalars(select(models.Document))).all()) == 1
    await engine.dispose()
    blocking = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(plain(guarded.application)),
        poolclass=NullPool,
    )
    delete = await served.delete_statement(owner, [document.document_id])
    with Session(blocking) as session, session.begin():
        session.execute(row_level_security.owner_setting(owner))
        assert session.execute(delete).rowcount == 1  # type: ignore[attr-defined]
    assert not any(rows(guarded.superuser).values())


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
