"""The models in an application's own queries and beside its own models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from integration.helpers import paragraphs
from plugins.plans import explained, indexes_read
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    joinedload,
    mapped_column,
    selectinload,
    undefer,
)
from sqlalchemy.pool import NullPool

from llmemory import AsyncMemory
from llmemory.mixins import DocumentExtension, DocumentReference
from llmemory.models import Base, Chunk, Document, Embedding

pytestmark = pytest.mark.anyio


class OwnBase(DeclarativeBase):
    pass


class Contract(DocumentExtension, OwnBase):
    __tablename__ = "contracts"

    value: Mapped[int]


class Order(DocumentReference, OwnBase):
    __tablename__ = "orders"

    order_id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=lambda: psycopg.AsyncConnection.connect(database_url),
        poolclass=NullPool,
    )
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(memory: AsyncMemory, engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    for name in ("x", "y"):
        await memory.add_document(
            "acme",
            name,
            paragraphs(f"holiday{name}", "leave", "policies"),
            additional_metadata={"team": name},
        )
    async with engine.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
    async with AsyncSession(engine) as session:
        yield session


async def test_filters_and_loader_options(session: AsyncSession) -> None:
    query = (
        select(Document)
        .where(Document.metadata_["team"].astext == "x")
        .options(selectinload(Document.chunks).selectinload(Chunk.embeddings))
        .options(selectinload(Document.jobs))
    )
    document = (await session.scalars(query)).one()
    assert [chunk.position for chunk in document.chunks] == [0, 1, 2]
    assert all(len(chunk.embeddings) == 1 for chunk in document.chunks)
    assert document.chunks[0].document is document
    assert document.jobs == []


async def test_nothing_is_loaded_by_being_looked_at(session: AsyncSession) -> None:
    document = (await session.scalars(select(Document).limit(1))).one()
    for name in ("chunks", "jobs"):
        with pytest.raises(InvalidRequestError, match="raise"):
            getattr(document, name)
    chunk = (await session.scalars(select(Chunk).limit(1))).one()
    for name in ("embeddings", "terms", "lexical"):
        with pytest.raises(InvalidRequestError, match="raise"):
            getattr(chunk, name)
    # It is in the session already, which costs nothing.
    assert isinstance(
        (await session.scalars(select(Chunk).options(joinedload(Chunk.document)))).first(), Chunk
    )
    terms = await session.scalars(select(Chunk).options(undefer(Chunk.terms)).limit(1))
    assert terms.one().terms


async def test_the_words_of_a_chunk(session: AsyncSession, engine: AsyncEngine) -> None:
    found = select(Chunk.content).where(Chunk.owner_id == "acme", Chunk.matches("policy"))
    assert len((await session.scalars(found)).all()) == 2
    assert not (await session.scalars(select(Chunk).where(Chunk.matches("the unknown")))).all()
    chunk = aliased(Chunk)
    both = select(chunk).where(chunk.matches("holidayx leave", owner_id="acme", language="english"))
    assert len((await session.scalars(both)).all()) == 3
    other = select(Chunk).where(Chunk.matches("policy", owner_id="other", language="english"))
    assert not (await session.scalars(other)).all()
    await session.rollback()
    await session.connection()
    from sqlalchemy import text

    await session.execute(text("SET LOCAL enable_seqscan = off"))
    with explained(engine) as nodes:
        await session.scalars(both)
    assert "ix_chunks_terms" in indexes_read(nodes)
    with pytest.raises(TypeError):
        Chunk().matches("policy")


async def test_the_distance_of_a_vector(session: AsyncSession) -> None:
    vectors = (await session.scalars(select(Embedding))).all()
    wanted = vectors[2]
    query = (
        select(Chunk, Embedding.distance_to(wanted.embedding).label("distance"))
        .join(Chunk.embeddings)
        .where(Embedding.space_id == wanted.space_id)
        .order_by("distance", Chunk.chunk_id)
    )
    rows = (await session.execute(query)).all()
    assert rows[0].distance == pytest.approx(0, abs=1e-3)
    distances = [row.distance for row in rows]
    assert distances == sorted(distances)
    by_hand = sorted(each.distance_to(wanted.embedding) for each in vectors)
    assert distances == pytest.approx(by_hand, abs=1e-3)
    near = select(Embedding).where(Embedding.distance_to(wanted.embedding) < 0.01)
    assert wanted in (await session.scalars(near)).all()


async def test_columns_beside_a_document(session: AsyncSession, memory: AsyncMemory) -> None:
    document = await memory.build_document("acme", "contract", "We owe you money.")
    session.add(Contract(document=document, value=500))
    await session.commit()
    query = (
        select(Contract).join(Contract.document).where(Document.document_name == "contract")
    ).options(joinedload(Contract.document))
    contract = (await session.scalars(query)).one()
    assert (contract.value, contract.document.content) == (500, "We owe you money.")
    hits = (await memory.search_statement("acme", "money owed")).subquery()
    joined = select(Contract.value, hits.c.score).join(
        hits,
        (Contract.owner_id == hits.c.owner_id) & (Contract.document_id == hits.c.document_id),
    )
    assert [row.value for row in await session.execute(joined)] == [500]
    await memory.delete_document("acme", contract.document_id)
    await session.rollback()
    assert (await session.scalars(select(Contract))).all() == []


async def test_a_reference_to_a_document(session: AsyncSession, memory: AsyncMemory) -> None:
    document = await memory.build_document("acme", "order", "Two chairs.")
    session.add_all([Order(order_id=1, document=document), Order(order_id=2)])
    await session.commit()
    query = select(Order).order_by(Order.order_id).options(selectinload(Order.document))
    first, second = (await session.scalars(query)).all()
    assert (first.document.content, second.document) == ("Two chairs.", None)
    await memory.delete_document("acme", UUID(str(first.document_id)))
    await session.rollback()
    found = await session.scalars(query.execution_options(populate_existing=True))
    assert [order.document for order in found] == [None, None]


def test_the_models_know_nothing_of_the_application() -> None:
    assert {table.schema for table in Base.metadata.tables.values()} == {"llmemory"}
    assert not {"contracts", "orders"} & {table.name for table in Base.metadata.tables.values()}


def test_every_model_tells_what_it_is() -> None:
    mapped: list[Any] = [mapper.class_ for mapper in Base.registry.mappers]
    assert all(model.__doc__ for model in mapped)
