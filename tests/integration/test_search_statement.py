"""``search_statement``: the search as a part of the caller's own statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from integration.clusters import LARGE, LARGE_COUNT, SETTINGS, ClusteredEmbedder, documents
from integration.helpers import plain
from plugins.memories import MakeMemory
from plugins.plans import indexes_read, most_rows
from plugins.server import fresh_database, with_driver
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    create_engine,
    func,
    insert,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory, Memory, SearchResult, ValidationError
from llmemory.statements.vector_indexes import index_name

pytestmark = pytest.mark.anyio

INDEX = index_name(LARGE, 1, "halves")
SCHEMAS = ["llmemory", 'tenant "1" %s :owner']
QUERY = "cluster 3 number 100003"
WATCHED = ("hnsw.ef_search", "enable_seqscan", "plan_cache_mode", "jit", "jit_above_cost")

notes = Table(
    "notes",
    MetaData(),
    Column("note_id", Integer, primary_key=True),
    Column("document_id", Uuid, nullable=False),
    Column("stars", Integer, nullable=False),
)
kept = Table(
    "kept",
    notes.metadata,
    Column("note_id", ForeignKey(notes.c.note_id)),
    Column("content", Text),
)


@pytest.fixture(scope="module")
def filled(server_url: str, template: str) -> Iterator[str]:
    """A database with an owner who has an HNSW index, in two schemas."""

    async def fill(url: str) -> None:
        for schema in SCHEMAS:
            memory = AsyncMemory(
                url, embedder=ClusteredEmbedder(), settings=SETTINGS, schema=schema
            )
            async with memory:
                await memory.add_documents(documents(LARGE, LARGE_COUNT))
                await memory.maintain()

    with fresh_database(server_url, template) as url:
        asyncio.run(fill(url))
        yield url


@pytest.fixture(params=["asyncpg", "psycopg"])
async def engine(filled: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """An application's own engine, of which the memory knows nothing."""
    async with engine_for(filled, request.param) as engine:
        yield engine


class engine_for:  # noqa: N801
    def __init__(self, url: str, driver: str, **options: Any) -> None:
        scheme = f"postgresql+{driver}://"
        if driver == "psycopg":

            async def connect() -> Any:
                return await psycopg.AsyncConnection.connect(url)
        else:
            import asyncpg

            async def connect() -> Any:
                return await asyncpg.connect(url)

        self.engine = create_async_engine(
            scheme, async_creator=connect, poolclass=NullPool, **options
        )

    async def __aenter__(self) -> AsyncEngine:
        return self.engine

    async def __aexit__(self, *exception: object) -> None:
        await self.engine.dispose()


@pytest.fixture
def large(filled: str, make_memory: MakeMemory) -> AsyncMemory:
    return make_memory(filled, embedder=ClusteredEmbedder(), settings=SETTINGS)


@pytest.fixture
def sync_engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(with_driver(database_url, "postgresql+psycopg"), poolclass=NullPool)
    notes.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
async def noted(memory: AsyncMemory, sync_engine: Engine) -> dict[str, str]:
    """Ids of documents about leave by name, each with a note of 1, 2 ... stars."""
    found = {}
    with sync_engine.begin() as connection:
        for stars, name in enumerate(["one", "two", "three", "four"], start=1):
            result = await memory.add_document(
                "acme",
                name,
                f"Leave {'of absence ' * stars}.",
                additional_metadata={"team": name[0]},
                document_date=datetime(2025, 1, stars, tzinfo=UTC),
            )
            found[name] = result.document_id
            connection.execute(insert(notes), {"document_id": result.document_id, "stars": stars})
    await memory.add_document("other", "theirs", "Leave.")
    return found


def same(rows: list[Any], hits: list[SearchResult]) -> bool:
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert hits
    for row, hit in zip(rows, hits, strict=True):
        found = row._mapping
        expected = hit.model_dump()
        for name in ("score", "similarity", "lexical_score"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6), name
        assert (str(row.chunk_id), str(row.document_id)) == (hit.chunk_id, hit.document_id)
        assert (row.start_offset, row.end_offset) == (hit.start, hit.end)
        for name in found.keys() & expected.keys():
            if name not in {"chunk_id", "document_id", "score", "similarity", "lexical_score"}:
                assert found[name] == expected[name], name
    return True


@pytest.mark.usefixtures("noted")
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("leave absence", {}),
        ("leave", {"search_type": "text", "limit": 2, "offset": 1}),
        ("leave", {"search_type": "vector"}),
        ('"leave of absence" -holiday', {"alpha": 0.2, "min_score": 0.01}),
        ("leave", {"metadata_filter": {"team": {"$in": ["o", "f"]}}, "context_window": 1}),
        ("leave", {"language": "english", "date_from": "2025-01-02", "date_to": "2025-01-03"}),
        ("leave", {"document_type": "general", "metadata_filter": {"$not": {"team": "o"}}}),
    ],
)
async def test_it_finds_what_search_finds(
    memory: AsyncMemory, sync_engine: Engine, query: str, options: dict[str, Any]
) -> None:
    hits = await memory.search("acme", query, **options)
    statement = await memory.search_statement("acme", query, **options)
    with Session(sync_engine) as session:
        assert same(list(session.execute(statement)), hits)


@pytest.mark.usefixtures("noted")
async def test_the_blocking_memory_has_it(database_url: str, sync_engine: Engine) -> None:
    from llmemory import HashEmbedder

    with Memory(database_url, embedder=HashEmbedder()) as memory, sync_engine.connect() as own:
        rows = own.execute(memory.search_statement("acme", "leave")).all()
        assert same(list(rows), memory.search("acme", "leave"))


async def test_joined_with_tables_of_the_caller(
    memory: AsyncMemory, sync_engine: Engine, noted: dict[str, str]
) -> None:
    statement = await memory.search_statement("acme", "leave")
    hit = statement.selected_columns
    joined = (
        statement.join(notes, notes.c.document_id == hit.document_id)
        .add_columns(notes.c.stars)
        .where(notes.c.stars < 4, hit.metadata["team"].astext != "o")
        .order_by(notes.c.stars.desc())
    )
    with sync_engine.connect() as connection:
        assert [row.document_name for row in connection.execute(joined)] == ["three", "two"]
        page = connection.execute(joined.limit(1).offset(1)).all()
        assert [row.stars for row in page] == [2]
        counted = select(func.count()).select_from(joined.subquery())
        assert connection.scalar(counted) == 2


@pytest.mark.usefixtures("noted")
async def test_several_in_one_statement(memory: AsyncMemory, sync_engine: Engine) -> None:
    mine = await memory.search_statement("acme", "leave", limit=2, context_window=1)
    words = await memory.search_statement("acme", "absence", search_type="text", limit=3)
    theirs = await memory.search_statement("other", "leave", search_type="vector")
    parts = [part.with_only_columns(*list(part.selected_columns)[:5]) for part in (mine, words)]
    expected = [
        *(await memory.search("acme", "leave", limit=2)),
        *(await memory.search("acme", "absence", search_type="text", limit=3)),
    ]
    with sync_engine.connect() as connection:
        both = connection.execute(union_all(*parts)).all()
        assert [str(row.chunk_id) for row in both] == [hit.chunk_id for hit in expected]
        # The same search twice, once with another value.
        again = await memory.search_statement("other", "leave", search_type="vector")
        assert len(connection.execute(union_all(theirs, again)).all()) == 2
        a, b = mine.subquery(), mine.cte("again")
        assert connection.scalar(select(func.count()).select_from(a.join(b, a.c.rank == b.c.rank)))
        # Within what writes.
        stored = insert(kept).from_select(
            ["note_id", "content"],
            select(notes.c.note_id, a.c.content).join(a, a.c.document_id == notes.c.document_id),
        )
        connection.execute(stored)
        assert connection.scalar(select(func.count()).select_from(kept)) == 2
        exists = select(notes).where(notes.c.document_id.in_(select(b.c.document_id)))
        assert len(connection.execute(exists).all()) == 2


async def test_every_value_is_bound(memory: AsyncMemory, sync_engine: Engine) -> None:
    """An owner, a query and a filter with what SQL and its drivers might take for something."""
    odd = "o'wner :owner %s %(x)s \\ $1 -- ;"
    await memory.add_document(odd, "a", f"Leave {odd}", additional_metadata={odd: odd})
    statement = await memory.search_statement(odd, odd, metadata_filter={odd: odd}, min_score=0)
    compiled = statement.compile(sync_engine)
    assert "o'" not in str(compiled)
    assert odd in compiled.params.values()
    with sync_engine.connect() as connection:
        assert len(connection.execute(statement).all()) == 1
        marked = select(statement.subquery(), literal(odd).label("mark"))
        assert connection.execute(marked).one().mark == odd


async def test_arguments_are_checked(memory: AsyncMemory) -> None:
    with pytest.raises(ValidationError):
        await memory.search_statement("acme", "leave", limit=0)
    with pytest.raises(ValidationError):
        await memory.search_statement("", "leave")


async def test_statements_of_a_shape_share_one_compilation(memory: AsyncMemory) -> None:
    first = await memory.search_statement("acme", "leave")
    second = await memory.search_statement("other", "holiday", limit=3)
    filtered = await memory.search_statement("acme", "leave", document_type="general")
    keys = [each._generate_cache_key() for each in (first, second, filtered)]
    assert keys[0] is not None
    assert keys[0] == keys[1] != keys[2]


# With an index: plans and settings.


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("search_type", ["vector", "hybrid"])
async def test_the_plan_is_that_of_search(
    filled: str, make_memory: MakeMemory, plans_of: Any, schema: str, search_type: str
) -> None:
    async with engine_for(filled, "psycopg") as engine:
        memory = make_memory(filled, embedder=ClusteredEmbedder(), settings=SETTINGS, schema=schema)
        statement = await memory.search_statement(LARGE, QUERY, search_type=search_type)
        part = statement.subquery()
        composed = select(part.c.chunk_id, text("1")).where(part.c.score > 0).order_by(part.c.rank)
        for asked in (statement, composed, select(statement.cte())):
            with plans_of(engine) as nodes:
                async with engine.connect() as connection:
                    assert len((await connection.execute(asked)).all()) == 10
            assert INDEX in indexes_read(nodes)
            # One more than is wanted shows that it is no equal.
            few = 10 if search_type == "vector" else SETTINGS.candidates
            assert most_rows(nodes, "embeddings") <= few + 1


@pytest.mark.parametrize("metadata_filter", [None, {"half": True}, {"rare": True}])
async def test_whoever_executes_it_gets_the_hits_of_search(
    large: AsyncMemory, engine: AsyncEngine, metadata_filter: Any
) -> None:
    options: dict[str, Any] = {"limit": 100, "metadata_filter": metadata_filter}
    hits = await large.search(LARGE, QUERY, **options)
    statement = await large.search_statement(LARGE, QUERY, **options)
    async with engine.connect() as connection, AsyncSession(engine) as session:
        assert same(list(await connection.execute(statement)), hits)
        assert same(list(await session.execute(statement)), hits)
    async with engine.connect() as connection:
        streamed = await connection.stream(statement)
        assert same([row async for row in streamed], hits)


async def test_settings_are_as_they_were_after_it(large: AsyncMemory, engine: AsyncEngine) -> None:
    statement = await large.search_statement(LARGE, QUERY, limit=5)
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL hnsw.ef_search = 77"))
        before = await watched(connection)
        assert before["hnsw.ef_search"] == "77"
        during = select(
            statement.subquery(),
            *(func.current_setting(name).label(name) for name in WATCHED),
        )
        row = (await connection.execute(during)).first()
        assert row is not None
        assert row._mapping["hnsw.ef_search"] == str(SETTINGS.hnsw_ef_search)
        assert row._mapping["enable_seqscan"] == "off"
        assert await watched(connection) == before
        # What it wrote stays, and so does what the caller's transaction has.
        assert connection.in_transaction()


async def test_without_a_transaction(large: AsyncMemory, filled: str) -> None:
    statement = await large.search_statement(LARGE, QUERY, limit=5)
    hits = await large.search(LARGE, QUERY, limit=5)
    for driver in ("asyncpg", "psycopg"):
        async with (
            engine_for(filled, driver, isolation_level="AUTOCOMMIT") as engine,
            engine.connect() as connection,
        ):
            before = await watched(connection)
            assert same(list(await connection.execute(statement)), hits)
            assert await watched(connection) == before
            broken = select(1 / (statement.subquery().c.rank - 1))
            with pytest.raises(DBAPIError):
                await connection.execute(broken)
            assert await watched(connection) == before
            assert same(list(await connection.execute(statement)), hits)


async def test_a_failure_leaves_the_savepoint_to_the_caller(
    large: AsyncMemory, engine: AsyncEngine
) -> None:
    statement = await large.search_statement(LARGE, QUERY, limit=5)
    broken = select(1 / (statement.subquery().c.rank - 1))
    async with AsyncSession(engine) as session:
        before = await watched(session)
        savepoint = await session.begin_nested()
        with pytest.raises(DBAPIError):
            await session.execute(broken)
        await savepoint.rollback()
        assert await watched(session) == before
        assert len((await session.execute(statement)).all()) == 5
        assert await watched(session) == before


async def test_a_sync_session(large: AsyncMemory, filled: str) -> None:
    hits = await large.search(LARGE, QUERY, limit=50)
    statement = await large.search_statement(LARGE, QUERY, limit=50)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(plain(filled)), poolclass=NullPool
    )
    with Session(engine) as session:
        for _ in range(7):
            # Often enough for psycopg to prepare it.
            assert same(list(session.execute(statement)), hits)
    engine.dispose()


async def watched(connection: Any) -> dict[str, Any]:
    names = ", ".join(f"coalesce(current_setting('{name}', true), '40')" for name in WATCHED)
    row = (await connection.execute(text(f"SELECT {names}"))).one()
    return dict(zip(WATCHED, row, strict=True))
