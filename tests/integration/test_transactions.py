"""``session=``: writing and reading within the caller's own transaction."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from integration.helpers import GatedEmbedder, broken_documents, paragraphs, rows
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    create_async_engine,
)

from llmemory import (
    AsyncMemory,
    ConfigurationError,
    ConflictError,
    EmbeddingError,
    LLMemoryError,
    SchemaMissing,
    StorageError,
    ValidationError,
)

pytestmark = pytest.mark.anyio

NOTHING = dict.fromkeys(
    ("documents", "chunks", "embeddings", "embedding_jobs", "lexical_statistics"), 0
)
KINDS = pytest.mark.parametrize("kind", ["session", "connection"])


@pytest.fixture
async def engine(driver_url: str) -> AsyncIterator[AsyncEngine]:
    scheme, _, rest = driver_url.partition("://")
    scheme = "postgresql+asyncpg" if scheme == "postgresql" else scheme
    from sqlalchemy.pool import NullPool

    if scheme == "postgresql+psycopg":
        engine = create_async_engine(
            f"{scheme}://",
            async_creator=lambda: psycopg.AsyncConnection.connect(f"postgresql://{rest}"),
            poolclass=NullPool,
        )
    else:
        import asyncpg

        engine = create_async_engine(
            f"{scheme}://",
            async_creator=lambda: asyncpg.connect(f"postgresql://{rest}"),
            poolclass=NullPool,
        )
    yield engine
    await engine.dispose()


@pytest.fixture
async def memory(make_memory: MakeMemory, engine: AsyncEngine) -> AsyncMemory:
    memory = make_memory(engine=engine)
    await memory.initialize()
    return memory


@pytest.fixture
def opened(engine: AsyncEngine) -> Callable[[str], Any]:
    return lambda kind: AsyncSession(engine) if kind == "session" else engine.connect()


def items(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"owner_id": "acme", "document_name": str(n), "content": f"Leave {n}.", **more}
        for n in range(count)
    ]


@KINDS
@pytest.mark.parametrize("embed", [None, "now", "later"])
async def test_commit(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str, embed: Any
) -> None:
    async with opened(kind) as session:
        one = await memory.add_document("acme", "a", "Leave.", session=session, embed=embed)
        many = await memory.add_documents(items(5), session=session, embed=embed)
        assert rows(driver_url) == NOTHING
        await session.commit()
    assert len({one.document_id, *(result.document_id for result in many)}) == 6
    # The default leaves the vectors to later, since embedding would hold the transaction open.
    later = embed != "now"
    assert (one.embeddings_created, one.embeddings_queued) == ((0, 1) if later else (1, 0))
    found = rows(driver_url)
    assert (found["documents"], found["chunks"]) == (6, 6)
    assert (found["embeddings"], found["embedding_jobs"]) == ((0, 6) if later else (6, 0))
    assert len(await memory.search("acme", "leave", search_type="text")) == 6
    assert not broken_documents(driver_url)


@KINDS
@pytest.mark.parametrize("embed", ["now", "later"])
@pytest.mark.parametrize("bulk", [False, True])
async def test_rollback_leaves_nothing(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str, embed: Any, bulk: bool
) -> None:
    # The first thing in the transaction: asyncpg's BEGIN is lazy, and COPY would commit by itself.
    async with opened(kind) as session:
        if bulk:
            await memory.add_documents(items(300), session=session, embed=embed)
        else:
            await memory.add_document("acme", "a", "Leave.", session=session, embed=embed)
        await session.rollback()
    assert rows(driver_url) == NOTHING
    async with opened(kind) as session:
        await memory.add_documents(items(3, external_id=None), session=session, embed=embed)
    assert rows(driver_url) == NOTHING


@KINDS
async def test_an_error_of_the_callers_takes_all_back(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str
) -> None:
    async def fail() -> None:
        async with opened(kind) as session, session.begin():
            await memory.add_document("acme", "a", "Leave.", session=session)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert rows(driver_url) == NOTHING


@KINDS
async def test_it_sees_what_it_has_not_committed(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str
) -> None:
    kept = await memory.add_document("acme", "kept", "Leave of old.", external_id="kept")
    async with opened(kind) as session:
        new = await memory.add_document("acme", "new", "Leave.", session=session, embed="now")
        for search_type in ("text", "vector", "hybrid"):
            inside = await memory.search("acme", "leave", search_type=search_type, session=session)
            outside = await memory.search("acme", "leave", search_type=search_type)
            assert {hit.document_name for hit in inside} == {"kept", "new"}
            assert {hit.document_name for hit in outside} == {"kept"}
        grouped = await memory.search_with_documents("acme", "leave", session=session)
        assert len(grouped.documents) == 2
        assert (await memory.list_documents("acme", session=session)).total_count == 2
        assert (await memory.get_statistics("acme", session=session)).document_count == 2
        assert (await memory.get_document("acme", new.document_id, session=session)).content
        again = await memory.add_document(
            "acme", "kept", "Leave of new.", external_id="kept", session=session
        )
        assert (again.status, again.document_id) == ("replaced", kept.document_id)
        await memory.update_document("acme", new.document_id, document_name="n", session=session)
        await memory.delete_document("acme", kept.document_id, session=session)
        assert (await memory.list_documents("acme", session=session)).total_count == 1
        assert await memory.delete_documents("acme", [new.document_id], session=session) == 1
        assert (await memory.list_documents("acme")).total_count == 1
        assert await memory.delete_owner("acme", session=session) == 0
        await session.rollback()
    assert (await memory.get_document("acme", kept.document_id)).content == "Leave of old."
    assert not broken_documents(driver_url)


@KINDS
async def test_a_savepoint_rolled_back(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str
) -> None:
    async with opened(kind) as session:
        await memory.add_document("acme", "a", "Leave.", session=session)
        savepoint = await session.begin_nested()
        await memory.add_documents(items(3), session=session)
        await memory.delete_owner("acme", session=session)
        await savepoint.rollback()
        await memory.add_document("acme", "b", "Leave.", session=session)
        await session.commit()
    listed = await memory.list_documents("acme")
    assert [document.document_name for document in listed.documents] == ["b", "a"]
    assert not broken_documents(driver_url)


@KINDS
async def test_the_databases_refusal_is_taken_back_by_a_savepoint_of_the_caller(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str
) -> None:
    kept = await memory.add_document("acme", "a", "Leave.")

    async def failing(session: Any) -> None:
        await session.execute(text("ALTER TABLE llmemory.chunks RENAME TO elsewhere"))
        for call in (
            memory.search("acme", "leave", session=session),
            memory.add_document("acme", "b", "Leave.", session=session),
        ):
            inner = await session.begin_nested()
            with pytest.raises(SchemaMissing):
                await call
            await inner.rollback()

    async with opened(kind) as session:
        await memory.add_document("acme", "before", "Leave.", session=session)
        savepoint = await session.begin_nested()
        await failing(session)
        await savepoint.rollback()
        assert len(await memory.search("acme", "leave", search_type="text", session=session)) == 2
        await memory.add_document("acme", "after", "Leave.", session=session)
        await session.commit()
    listed = await memory.list_documents("acme")
    names = [document.document_name for document in listed.documents]
    assert names == ["after", "before", "a"]
    assert listed.documents[2].document_id == kept.document_id
    assert not broken_documents(driver_url)


def test_every_method_about_documents_takes_a_session() -> None:
    """The others have transactions of their own, or only return a statement."""
    without = {
        name
        for name, method in inspect.getmembers(AsyncMemory, inspect.isfunction)
        if not name.startswith("_") and "session" not in inspect.signature(method).parameters
    }
    assert without == {
        "initialize",
        "close",
        "health",
        "maintain",
        "process_pending_embeddings",
        "run_worker",
        "list_jobs",
        "requeue_jobs",
        "reembed",
        "list_spaces",
        "drop_space",
        "search_statement",
        "delete_statement",
    }


@KINDS
async def test_beside_the_callers_own_rows(
    memory: AsyncMemory, opened: Any, driver_url: str, kind: str
) -> None:
    async with opened(kind) as session:
        await session.execute(text("CREATE TABLE notes (id text)"))
        result = await memory.add_document("acme", "a", "Leave.", session=session)
        await session.execute(text("INSERT INTO notes VALUES (:id)"), {"id": result.document_id})
        with pytest.raises(ValidationError):
            await memory.add_document("acme", "", "Leave.", session=session)
        with pytest.raises(LLMemoryError):
            await memory.add_documents([*items(2), {"owner_id": "acme"}], session=session)
        # A refused argument leaves the transaction as it was.
        await session.commit()
    async with opened(kind) as session:
        joined = await session.execute(
            text("SELECT count(*) FROM notes JOIN llmemory.documents ON id = document_id::text")
        )
        assert joined.scalar_one() == 1
    assert rows(driver_url)["documents"] == 1


@KINDS
async def test_a_conflict_in_the_middle_stores_nothing(
    memory: AsyncMemory, make_memory: MakeMemory, opened: Any, driver_url: str, kind: str
) -> None:
    """The caller may catch the error and commit: no half of a document may be left."""
    gated = GatedEmbedder()
    slow = make_memory(engine=memory._database.given_engine, embedder=gated)
    await slow.initialize()
    documents = [
        {**item, "content": paragraphs("one", "two"), "external_id": n}
        for n, item in enumerate(items(3))
    ]
    import anyio

    async with opened(kind) as session, anyio.create_task_group() as tasks:

        async def add() -> None:
            with pytest.raises(ConflictError):
                await slow.add_documents(documents, session=session, embed="now")

        async def interfere() -> None:
            await gated.arrived.wait()
            await memory.add_document("acme", "theirs", "Leave.", external_id=2)
            gated.gate.set()

        tasks.start_soon(interfere)
        await add()
        await session.commit()
    assert rows(driver_url)["documents"] == 1
    assert not broken_documents(driver_url)


@KINDS
async def test_a_failing_embedder_leaves_the_transaction_usable(
    make_memory: MakeMemory, engine: AsyncEngine, opened: Any, driver_url: str, kind: str
) -> None:
    from integration.helpers import OddEmbedder

    embedder = OddEmbedder(RuntimeError("gone"))
    memory = make_memory(engine=engine, embedder=embedder)
    async with opened(kind) as session:
        await memory.add_document("acme", "a", "Leave.", session=session)
        with pytest.raises(EmbeddingError):
            await memory.add_document("acme", "b", "Leave.", session=session, embed="now")
        await session.commit()
    assert rows(driver_url)["documents"] == 1


async def test_the_search_runs_in_the_callers_transaction_only(
    memory: AsyncMemory, engine: AsyncEngine, statements: Callable[[AsyncMemory], Any]
) -> None:
    await memory.add_document("acme", "a", "Leave.")
    async with AsyncSession(engine) as session:
        with statements(memory) as sent:
            await memory.search("acme", "leave", session=session)
        assert len(sent) == 1
        assert session.in_transaction()


async def test_a_session_that_cannot_be_used_is_named(
    memory: AsyncMemory, engine: AsyncEngine, driver_url: str
) -> None:
    await memory.initialize()
    async with AsyncSession(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await memory.add_document("acme", "Leave", "25 days.", session=session)
    assert rows(driver_url) == NOTHING
    async with engine.connect() as connection:
        pass
    for call in (memory.search("acme", "leave", session=connection), add(memory, connection)):
        with pytest.raises(ConfigurationError, match="session cannot be used"):
            await call
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(StorageError, match="roll it back"):
            await memory.search("acme", "leave", session=connection)


async def add(memory: AsyncMemory, connection: AsyncConnection) -> None:
    await memory.add_document("acme", "Leave", "25 days.", embed="later", session=connection)


async def test_cancelled_on_its_way_into_copy_it_can_be_rolled_back(
    make_memory: MakeMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = psycopg.AsyncConnection.wait

    async def cancelled_wait(self: Any, generator: Any, *arguments: Any) -> Any:
        if generator.__name__ == "_start_copy_gen":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return await wait(self, generator, *arguments)

    memory = make_memory(database_url)
    await memory.initialize()
    engine = create_async_engine(with_driver(database_url, "postgresql+psycopg"))
    async with AsyncSession(engine) as session:
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.AsyncConnection, "wait", cancelled_wait)
            adding = asyncio.create_task(
                memory.add_document("acme", "Leave", "25 days.", session=session)
            )
            with pytest.raises(asyncio.CancelledError):
                await adding
        await session.rollback()
        await memory.add_document("acme", "Leave", "25 days.", session=session)
        await session.commit()
    assert (await memory.list_documents("acme")).total_count == 1
    await engine.dispose()
