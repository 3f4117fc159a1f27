"""``build_document``: documents that the caller's own session writes, sync or async."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from integration.helpers import broken_documents, fetch, paragraphs, rows
from plugins.memories import MakeMemory
from psycopg.rows import dict_row
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
from llmemory.models import Chunk, Document, Embedding, EmbeddingJob

pytestmark = pytest.mark.anyio

TEXT = "# Leave\n\n" + paragraphs("one", "two", "three")
SHORTER = "# Leave\n\n" + paragraphs("zero", "two", "four", "one")
DETAILS: dict[str, Any] = {
    "document_type": "markdown",
    "id_at_origin": "anna",
    "additional_metadata": {"team": "x", "when": [1, None, {"a": "b"}]},
    "document_date": "2025-03-01",
    "language": "english",
}
# Of what add_document and the session would write alike; times and ids differ.
WRITTEN = {
    "documents": "owner_id, external_id, id_at_origin, document_name, document_type, "
    "document_date, language, metadata, content_hash, content, chunk_count, "
    "updated_at = created_at AS is_new",
    "chunks": "owner_id, position, headings, content, content_hash, start_offset, end_offset, "
    "token_count, language, (words).terms, (words).lexical::text",
    "embeddings": "owner_id, space_id, embedding::text",
    "embedding_jobs": "owner_id, space_id, state, attempts, leased_until, last_error",
}


@pytest.fixture(params=["psycopg", "psycopg2"])
def engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = engine_for(database_url, request.param)
    yield engine
    engine.dispose()


def engine_for(url: str, driver: str = "psycopg") -> Engine:
    module = pytest.importorskip(driver)
    return create_engine(
        f"postgresql+{driver}://", creator=lambda: module.connect(url), poolclass=NullPool
    )


def written(url: str, owner_id: str) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        for table, columns in WRITTEN.items():
            order = "content" if table == "chunks" else columns.split(", ")[-1].split(" AS ")[0]
            query = f"SELECT {columns} FROM llmemory.{table} WHERE owner_id = %s ORDER BY {order}"
            found[table] = [
                {**row, "owner_id": None} for row in connection.execute(query.encode(), [owner_id])
            ]
    # Keys hold the owner's hash.
    for chunk in found["chunks"]:
        chunk["terms"] = len(chunk["terms"])
    return found


@pytest.mark.parametrize("embed", ["now", "later"])
@pytest.mark.parametrize("before", [None, TEXT])
async def test_it_writes_what_add_document_writes(
    memory: AsyncMemory, engine: Engine, database_url: str, embed: Any, before: str | None
) -> None:
    for owner in ("added", "built"):
        if before is not None:
            await memory.add_document(owner, "Old", before, external_id="h", embed=embed)
    options = {**DETAILS, "external_id": "h", "embed": embed}
    await memory.add_document("added", "Handbook", SHORTER, **options)
    document = await memory.build_document("built", "Handbook", SHORTER, **options)
    with Session(engine) as session:
        session.add(document)
        session.commit()
    assert written(database_url, "built") == written(database_url, "added")
    assert not broken_documents(database_url)
    await memory.process_pending_embeddings()
    hits = [await memory.search(owner, "zero four") for owner in ("built", "added")]
    assert [hit.content for hit in hits[0]] == [hit.content for hit in hits[1]]
    assert hits[0][0].score == hits[1][0].score


async def test_replacing_changes_as_little_as_possible(
    memory: AsyncMemory, engine: Engine, database_url: str, statements: Any
) -> None:
    added = await memory.add_document("acme", "Handbook", TEXT, external_id="h")
    kept = "SELECT chunk_id FROM llmemory.chunks WHERE content LIKE 'two%'"
    before = fetch(database_url, kept)
    document = await memory.build_document("acme", "Handbook", SHORTER, external_id="h")
    assert str(document.document_id) == added.document_id
    assert sum(len(chunk.embeddings) for chunk in document.chunks if "zero" in chunk.content) == 1
    with Session(engine) as session:
        session.add(document)
        session.flush()
        assert [chunk.position for chunk in document.chunks] == list(range(len(document.chunks)))
        session.commit()
    assert fetch(database_url, kept) == before
    assert not broken_documents(database_url)
    assert rows(database_url)["documents"] == 1


async def test_what_is_unchanged_is_not_written(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    await memory.add_document("acme", "Handbook", TEXT, external_id="h", **DETAILS)
    version = fetch(database_url, "SELECT updated_at, xmin FROM llmemory.documents")
    document = await memory.build_document("acme", "Handbook", TEXT, external_id="h", **DETAILS)
    with Session(engine) as session:
        session.add(document)
        assert not session.is_modified(document)
        session.commit()
    assert fetch(database_url, "SELECT updated_at, xmin FROM llmemory.documents") == version
    renamed = await memory.build_document("acme", "New", TEXT, external_id="h", **DETAILS)
    with Session(engine) as session:
        session.add(renamed)
        session.commit()
    assert (await memory.list_documents("acme")).documents[0].document_name == "New"
    assert not broken_documents(database_url)


async def test_vectors_made_of_what_was_left_for_later(
    memory: AsyncMemory, engine: Engine, database_url: str
) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h", embed="later")
    document = await memory.build_document("acme", "a", TEXT, external_id="h")
    # The worker was faster with another one.
    with Session(engine) as session:
        session.add(document)
        session.commit()
    found = rows(database_url)
    assert (found["embedding_jobs"], found["embeddings"]) == (0, found["chunks"])


async def test_replaced_by_its_id(memory: AsyncMemory, engine: Engine, database_url: str) -> None:
    plain = await memory.add_document("acme", "a", "Leave.")
    keyed = await memory.add_document("acme", "b", "Leave.", external_id="k")
    with Session(engine) as session:
        for number, added in enumerate((plain, keyed)):
            document = await memory.build_document(
                "acme", f"new {number}", "Holidays.", document_id=added.document_id
            )
            session.add(document)
        session.commit()
    found = fetch(
        database_url,
        "SELECT document_id, document_name, external_id, content "
        "FROM llmemory.documents ORDER BY document_name",
    )
    assert found == [
        (UUID(plain.document_id), "new 0", None, "Holidays."),
        (UUID(keyed.document_id), "new 1", "k", "Holidays."),
    ]
    with pytest.raises(DocumentNotFoundError):
        await memory.build_document("other", "a", "Leave.", document_id=plain.document_id)


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


@pytest.mark.parametrize("change", ["content", "name", "deleted"])
async def test_changed_in_between_it_is_refused(
    memory: AsyncMemory, engine: Engine, database_url: str, change: str
) -> None:
    added = await memory.add_document("acme", "a", TEXT, external_id="h")
    document = await memory.build_document("acme", "mine", SHORTER, external_id="h")
    if change == "content":
        await memory.add_document("acme", "theirs", "Leave.", external_id="h")
    elif change == "name":
        await memory.update_document("acme", added.document_id, document_name="theirs")
    else:
        await memory.delete_document("acme", added.document_id)
    with Session(engine) as session:
        session.add(document)
        with pytest.raises(StaleDataError):
            session.commit()
        session.rollback()
    found = {each.document_name for each in (await memory.list_documents("acme")).documents}
    assert found == ({"theirs"} if change != "deleted" else set())
    assert not broken_documents(database_url)


async def test_the_same_external_id_twice(memory: AsyncMemory, engine: Engine) -> None:
    documents = [
        await memory.build_document("acme", name, "Leave.", external_id="h") for name in "ab"
    ]
    with Session(engine) as session:
        session.add_all(documents)
        with pytest.raises(IntegrityError):
            session.commit()


async def test_a_change_by_the_orm_counts_as_one(memory: AsyncMemory, engine: Engine) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h")
    document = await memory.build_document("acme", "mine", SHORTER, external_id="h")
    with Session(engine) as session, session.begin():
        session.scalars(select(Document)).one().document_name = "theirs"
    with Session(engine) as session:
        session.add(document)
        with pytest.raises(StaleDataError):
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


async def test_arguments_are_checked_as_always(memory: AsyncMemory) -> None:
    with pytest.raises(ValidationError):
        await memory.build_document("acme", "", "Leave.")
    with pytest.raises(ValidationError):
        await memory.build_document("acme", "a", "Leave.", embed="never")  # type: ignore[arg-type]


@pytest.mark.parametrize("embed", ["now", "later"])
async def test_a_job_that_was_finished_in_between(
    memory: AsyncMemory, engine: Engine, database_url: str, embed: Any
) -> None:
    await memory.add_document("acme", "a", TEXT, external_id="h", embed="later")
    options = {"external_id": "h", "embed": embed}
    document = await memory.build_document("acme", "a", SHORTER, **options)
    await memory.process_pending_embeddings()
    with Session(engine) as session:
        session.add(document)
        with pytest.raises((IntegrityError, StaleDataError)):
            session.commit()
    with Session(engine) as session:
        session.add(await memory.build_document("acme", "a", SHORTER, **options))
        session.commit()
        jobs = session.scalars(select(EmbeddingJob)).all()
        assert len(jobs) == (embed == "later")
    assert not broken_documents(database_url)
