"""Sessions that write built documents: rolled back, merged, async, and with other schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from integration.built_documents import DETAILS, SHORTER, TEXT, engine, written
from integration.helpers import broken_documents, fetch, rows
from plugins.memories import MakeMemory
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    DocumentNotFoundError,
    HashEmbedder,
    Memory,
    ValidationError,
)
from llmemory.models import Chunk, Document, Embedding

__all__ = ["engine"]

pytestmark = pytest.mark.anyio


async def test_rolled_back_it_leaves_nothing(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    kept = await memory.add_document("acme", "kept", TEXT, external_id="h")
    before = written(database_url, "acme")
    new = await memory.build_document("acme", "new", TEXT)
    replaced = await memory.build_document("acme", "kept", SHORTER, external_id="h")
    with Session(engine) as session:
        with session.begin_nested() as savepoint:
            session.add(new)
            session.flush()
            savepoint.rollback()
        session.add(replaced)
        session.flush()
        assert session.scalar(select(Document.content)) == SHORTER
        session.rollback()
    assert written(database_url, "acme") == before
    assert (await memory.get_document("acme", kept.document_id)).content == TEXT


@pytest.mark.parametrize("change", ["content", "name"])
async def test_changed_in_between_it_is_refused(
    memory: AsyncMemory, engine: Engine, database_url: str, change: str
) -> None:
    added = await memory.add_document("acme", "a", TEXT, external_id="h")
    document = await memory.build_document("acme", "mine", SHORTER, external_id="h")
    if change == "content":
        await memory.add_document("acme", "theirs", "Leave.", external_id="h")
    else:
        await memory.update_document("acme", added.document_id, document_name="theirs")
    with Session(engine) as session:
        session.add(document)
        with pytest.raises(StaleDataError):
            session.commit()
        session.rollback()
    found = {each.document_name for each in (await memory.list_documents("acme")).documents}
    assert found == {"theirs"}
    assert not broken_documents(database_url)


@pytest.mark.parametrize("content", [TEXT, SHORTER], ids=["unchanged", "changed"])
async def test_what_is_deleted_before_the_flush_is_not_replaced(
    memory: AsyncMemory, engine: Engine, database_url: str, content: str
) -> None:
    added = await memory.add_document("acme", "a", TEXT, external_id="h")
    deletion = await memory.delete_statement("acme", external_ids=["h"])
    document = await memory.build_document("acme", "a", content, external_id="h")
    with Session(engine) as session:
        session.execute(deletion)
        session.add(document)
        with pytest.raises(DocumentNotFoundError, match="Leave the deletion out") as caught:
            session.commit()
    assert caught.value.document_id == added.document_id
    # Nothing of it has happened.
    assert (await memory.get_document("acme", added.document_id)).content == TEXT
    # Built after it, in its transaction, it is a new one.
    own = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(database_url),
        poolclass=NullPool,
    )
    async with AsyncSession(own) as other:
        await other.execute(deletion)
        new = await memory.build_document("acme", "a", content, external_id="h", session=other)
        other.add(new)
        await other.commit()
    (found,) = (await memory.list_documents("acme")).documents
    assert found.document_id != added.document_id
    assert not broken_documents(database_url)


async def test_the_same_external_id_twice(memory: AsyncMemory, engine: Engine) -> None:
    documents = [
        await memory.build_document("acme", name, "Leave.", external_id="h") for name in "ab"
    ]
    with Session(engine) as session:
        session.add_all(documents)
        with pytest.raises(IntegrityError):
            session.commit()


async def test_merged_into_a_session_that_has_it(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    added = await memory.add_document("acme", "a", TEXT, external_id="h")
    document = await memory.build_document("acme", "mine", SHORTER, external_id="h")
    with Session(engine) as session:
        loaded = session.get(Document, ("acme", UUID(added.document_id)))
        with pytest.raises(InvalidRequestError, match="already present"):
            session.add(document)
        assert session.merge(document) is loaded
        session.commit()
    assert (await memory.get_document("acme", added.document_id)).content == SHORTER
    assert not broken_documents(database_url)


async def test_an_async_session(
    memory: AsyncMemory, make_memory: MakeMemory, driver_url: str, database_url: str
) -> None:
    scheme = driver_url.partition("://")[0].replace("postgresql+", "")
    driver = "asyncpg" if scheme == "postgresql" else scheme
    import asyncpg

    connect: Callable[..., Any] = (
        asyncpg.connect if driver == "asyncpg" else psycopg.AsyncConnection.connect
    )
    engine = create_async_engine(
        f"postgresql+{driver}://",
        async_creator=lambda: connect(database_url),
        poolclass=NullPool,
    )
    async with AsyncSession(engine, expire_on_commit=False) as session:
        document = await memory.build_document("acme", "a", TEXT, external_id="h", **DETAILS)
        session.add(document)
        await session.flush()
        # In the session's own transaction it is stored already.
        again = await memory.build_document(
            "acme", "b", SHORTER, external_id="h", session=session, **DETAILS
        )
        assert again.document_id == document.document_id
        await session.merge(again)
        await session.commit()
        assert document.content == SHORTER
        assert len(document.chunks) == document.chunk_count
        added = await memory.add_document("other", "b", SHORTER, external_id="h", **DETAILS)
        await session.delete(document)
        await session.commit()
    await engine.dispose()
    assert added.chunks_created
    assert rows(database_url, "acme") == dict.fromkeys(rows(database_url), 0)
    assert not broken_documents(database_url)


async def test_deleting(memory: AsyncMemory, engine: Engine, database_url: str) -> None:
    results = [
        await memory.add_document(
            "acme", str(n), TEXT, external_id=n, additional_metadata={"n": n}, embed="later"
        )
        for n in range(5)
    ]
    await memory.add_document("other", "o", TEXT, external_id=1)
    with Session(engine) as session:
        document = session.get(Document, ("acme", UUID(results[0].document_id)))
        session.delete(document)
        session.execute(await memory.delete_statement("acme", [results[1].document_id]))
        statement = await memory.delete_statement("acme", external_ids=[2, "unknown"])
        assert session.execute(statement).rowcount == 1  # type: ignore[attr-defined]
        filtered = await memory.delete_statement("acme", metadata_filter={"n": {"$gte": 4}})
        session.execute(filtered)
        assert rows(database_url)["documents"] == 6
        session.commit()
    assert [d.document_name for d in (await memory.list_documents("acme")).documents] == ["3"]
    assert (await memory.list_documents("other")).total_count == 1
    assert not broken_documents(database_url)
    with pytest.raises(ValidationError):
        await memory.delete_statement("acme")


async def test_another_schema(make_memory: MakeMemory, engine: Engine, database_url: str) -> None:
    memory = make_memory(schema='tenant "2"')
    other = make_memory(schema="tenant_3")
    await other.initialize()
    document = await memory.build_document("acme", "a", TEXT, external_id="h", embed="later")
    for options in ({}, other.execution_options):
        with Session(engine) as session:
            session.connection(execution_options=options)
            session.add(document)
            with pytest.raises(ConfigurationError, match="built for the schema"):
                session.flush()
            session.rollback()
    default = make_memory()
    with Session(engine) as session:
        session.connection(execution_options=memory.execution_options)
        session.add(await default.build_document("acme", "a", TEXT))
        with pytest.raises(ConfigurationError, match="built for the schema"):
            session.flush()
    for content in (TEXT, SHORTER):
        document = await memory.build_document("acme", "a", content, external_id="h")
        with Session(engine) as session:
            session.connection(execution_options=memory.execution_options)
            session.add(document)
            session.commit()
    assert rows(database_url, schema='tenant "2"')["documents"] == 1
    assert rows(database_url, schema="tenant_3")["documents"] == 0
    assert rows(database_url)["documents"] == 0
    with Session(engine) as session:
        session.connection(execution_options=memory.execution_options)
        found = session.scalars(
            select(Chunk)
            .where(Chunk.matches("zero", owner_id="acme", language="english"))
            .options(selectinload(Chunk.embeddings), selectinload(Chunk.document))
        ).all()
        assert [chunk.document.document_name for chunk in found] == ["a"]
        vector = found[0].embeddings[0].embedding
        nearest = session.scalars(
            select(Embedding).order_by(Embedding.distance_to(vector)).limit(1)
        ).one()
        assert nearest.chunk_id == found[0].chunk_id
        session.execute(await memory.delete_statement("acme", external_ids=["h"]))
        session.commit()
    assert rows(database_url, schema='tenant "2"')["chunks"] == 0


async def test_the_blocking_memory(database_url: str, engine: Engine) -> None:
    with Memory(database_url, embedder=HashEmbedder()) as memory:
        document = memory.build_document("acme", "a", TEXT, external_id="h")
        assert not fetch(database_url, "SELECT 1 FROM llmemory.documents")
        with Session(engine) as session:
            session.connection(execution_options=memory.execution_options)
            session.add(document)
            session.commit()
        assert memory.search("acme", "two")


async def test_codecs_of_the_caller_do_not_matter(memory: AsyncMemory, database_url: str) -> None:
    """As with add_document: whatever a caller registered for vectors on the connection."""
    from pgvector.psycopg import register_vector

    def connect() -> Any:
        connection = psycopg.connect(database_url)
        register_vector(connection)
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    with Session(engine) as session:
        session.add(await memory.build_document("acme", "a", TEXT))
        session.commit()
        embedding = session.scalars(select(Embedding)).first()
        assert embedding is not None
        distance = Embedding.distance_to(embedding.embedding)
        assert embedding.distance_to(embedding.embedding) == pytest.approx(0, abs=1e-6)
        assert session.scalar(select(distance).limit(1)) == pytest.approx(0, abs=1e-3)
    engine.dispose()
