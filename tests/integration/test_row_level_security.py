"""Row level security: who sees which rows, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from integration.helpers import TABLES, fetch, paragraphs, plain, rows, writes
from plugins.guarded import HOSTILE, Guarded
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, ConfigurationError, DocumentNotFoundError, models
from llmemory.schema import row_level_security

pytestmark = pytest.mark.anyio

# More chunks than are inserted by themselves.
MANY_SECTIONS = "\n\n".join(f"# Part {number}\n\n{'word ' * 200}" for number in range(60))
OWNED = text(
    "SELECT table_name FROM information_schema.columns "
    "WHERE table_schema = 'llmemory' AND column_name = 'owner_id'"
)


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


async def test_a_few_chunks_need_no_temporary_table(
    served: AsyncMemory, round_trips: Callable[[AsyncMemory], Any]
) -> None:
    await served.add_document("acme", "Leave", "25 days.")
    with round_trips(served) as sent:
        await served.add_document("acme", "Leave", "26 days.")
    assert [each.partition(" (")[0] for each in writes(sent)] == [
        f"INSERT INTO llmemory.{table}" for table in ("documents", "chunks", "embeddings")
    ]
    # The owner, spaces, begin and commit: with psycopg some go past what is recorded.
    assert len(sent) <= 8
    with round_trips(served) as sent:
        await served.add_document("acme", "Many", MANY_SECTIONS)
    assert len([each for each in sent if "TEMPORARY" in each]) == 2


async def test_inserted_rows_are_those_that_would_be_copied(
    served: AsyncMemory, guarded: Guarded, make_memory: MakeMemory
) -> None:
    content = "# Häuser\n\n" + "\n\n".join(
        f'## "Part" {number}, {{x}}\n\n{"Straße. " * 100}' for number in range(8)
    )
    unbound = make_memory(guarded.superuser)
    for memory, name in ((served, "inserted"), (unbound, "copied")):
        await memory.add_document("acme", name, content, language="german")
    found = [
        fetch(
            guarded.superuser,
            """
            SELECT position, headings, c.content, c.content_hash, start_offset, end_offset,
                token_count, c.language, words::text, embedding::text
            FROM llmemory.chunks AS c JOIN llmemory.embeddings USING (owner_id, chunk_id)
            JOIN llmemory.documents USING (owner_id, document_id)
            WHERE document_name = %s ORDER BY position
            """,
            name,
        )
        for name in ("inserted", "copied")
    ]
    assert len(found[0]) == 4
    assert found[0] == found[1]


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
