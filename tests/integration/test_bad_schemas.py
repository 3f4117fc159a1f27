"""Schemas that are missing, newer, taken away or forbidden, and tables that refuse rows."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import psycopg
import pytest
from integration.helpers import fetch, rows
from integration.refusals import CALLS, SECRET, changed, good_document
from plugins.memories import MakeMemory
from psycopg import sql

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    ConflictError,
    ExtensionMissing,
    HashEmbedder,
    LLMemoryError,
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    Settings,
    StorageError,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "schema", ["", "s" * 64, "ü" * 32, "a\0b", "\ud800", "pg_mine", "information_schema", 5]
)
async def test_bad_schema_names_are_refused(database_url: str, schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        AsyncMemory(database_url, schema=schema, embedder=HashEmbedder())


async def test_a_missing_schema_is_only_checked_for_without_migrate(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    fetch(empty_database_url, "CREATE EXTENSION vector")
    memory = make_memory(empty_database_url, settings=Settings(migrate=False))
    with pytest.raises(SchemaMissing, match="llmemory db upgrade"):
        await memory.search("acme", "leave")
    assert not fetch(empty_database_url, "SELECT 1 FROM pg_namespace WHERE nspname = 'llmemory'")


async def test_a_missing_extension_says_what_to_run(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    memory = make_memory(empty_database_url, settings=Settings(migrate=False))
    with pytest.raises(ExtensionMissing, match="CREATE EXTENSION vector"):
        await memory.add_document("acme", "a", "b")


@pytest.mark.parametrize("revision", ["9999", "someone's"])
async def test_a_newer_schema_is_refused(
    make_memory: MakeMemory, database_url: str, revision: str
) -> None:
    fetch(database_url, "UPDATE llmemory.llmemory_version SET version_num = %s", revision)
    with pytest.raises(SchemaTooNew, match="newer") as caught:
        await make_memory().add_document("acme", "a", "b")
    assert isinstance(caught.value, SchemaOutOfDate)
    assert caught.value.found == revision
    assert not any(rows(database_url).values())


async def test_tables_that_vanish(memory: AsyncMemory, database_url: str) -> None:
    for call in CALLS[1:]:
        # What notices has the next call look again, and make them anew.
        await memory.initialize()
        fetch(database_url, "DROP SCHEMA llmemory CASCADE")
        with pytest.raises(SchemaError, match="llmemory db upgrade"):
            await call(memory)


async def test_a_role_without_privileges(make_memory: MakeMemory, database_url: str) -> None:
    role = f"weak_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            memory = make_memory(changed(database_url, user=role))
            with pytest.raises(LLMemoryError) as caught:
                await memory.add_document("acme", "a", "b")
            assert isinstance(caught.value, ConfigurationError | SchemaError)
            assert "grant" in str(caught.value)
            await memory.close()
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("table", ["documents", "chunks", "embeddings"])
async def test_a_database_that_refuses_rows(
    make_memory: MakeMemory, driver_url: str, table: str
) -> None:
    memory = make_memory(driver_url)
    kept = await memory.add_document("acme", "a", "Old text.", external_id="a")
    fetch(driver_url, f"ALTER TABLE llmemory.{table} ADD CONSTRAINT no CHECK (false) NOT VALID")
    for call in (
        lambda: memory.add_document("acme", "b", f"{SECRET} text."),
        lambda: memory.add_document("acme", "a", f"{SECRET} text.", external_id="a"),
        lambda: memory.add_documents([good_document(content=SECRET)] * 3),
        lambda: memory.update_document("acme", kept.document_id, content=SECRET),
    ):
        # The cause is the driver's error: only ours must hold no content.
        before = rows(driver_url)
        with pytest.raises(StorageError) as caught:
            await call()
        assert caught.value.sqlstate == "23514"
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert rows(driver_url) == before
    assert (await memory.get_document("acme", kept.document_id)).content == "Old text."


async def test_a_conflict_that_no_retry_solves(
    memory: AsyncMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmemory.documents.writer.ATTEMPTS", 8)
    await memory.initialize()
    fetch(database_url, "CREATE UNIQUE INDEX one_name ON llmemory.documents (document_name)")
    await memory.add_document("acme", "Name", "b")
    with pytest.raises(ConflictError) as caught:
        await memory.add_document("acme", "Name", "b")
    assert caught.value.constraint == "one_name"
    assert rows(database_url)["documents"] == 1
