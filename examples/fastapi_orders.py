"""Orders and their documents in one transaction, with an AsyncSession and one engine for both.

Uses the database that LLMEMORY_DATABASE_URL names:

    pip install ".[fastapi]" uvicorn
    uvicorn --app-dir examples fastapi_orders:app

An order and its document appear, change and go together, or not at all. Check first who calls, and
whether they may use the workspace: this example trusts its callers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import CheckConstraint, and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from llmemory import AsyncMemory, Health
from llmemory.fastapi import MemoryDependency, install_error_handlers, memory_lifespan
from llmemory.mixins import DocumentReference


class Base(DeclarativeBase):
    pass


class Order(DocumentReference, Base):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("amount > 0"),)

    workspace_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ["LLMEMORY_DATABASE_URL"]
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.begin() as connection:
        # A real application has a migration for it.
        await connection.run_sync(Base.metadata.create_all)
    app.state.engine = engine
    async with memory_lifespan(lambda: AsyncMemory.from_engine(engine))(app):
        yield
    await engine.dispose()


app = FastAPI(title="Orders", lifespan=lifespan)
install_error_handlers(app)


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(request.app.state.engine) as session:
        yield session


SessionDependency = Annotated[AsyncSession, Depends(open_session)]


class OrderBody(BaseModel):
    amount: int
    text: str


@app.put("/workspaces/{workspace_id}/orders/{number}")
async def save_order(
    workspace_id: str,
    number: int,
    body: OrderBody,
    session: SessionDependency,
    memory: MemoryDependency,
    tasks: BackgroundTasks,
) -> dict[str, int]:
    # Found by its words at once; the vectors are made when the transaction is done.
    result = await memory.add_document(
        workspace_id,
        f"Order {number}",
        body.text,
        external_id=f"order-{number}",
        session=session,
    )
    order = await session.get(Order, (workspace_id, number))
    if order is None:
        order = Order(workspace_id=workspace_id, number=number)
        session.add(order)
    order.amount = body.amount
    order.document_owner_id, order.document_id = workspace_id, result.document_id
    await session.commit()
    tasks.add_task(memory.process_pending_embeddings, workspace_id)
    return {"number": number}


@app.delete("/workspaces/{workspace_id}/orders/{number}", status_code=204)
async def delete_order(
    workspace_id: str, number: int, session: SessionDependency, memory: MemoryDependency
) -> None:
    order = await session.get(Order, (workspace_id, number))
    if order is None:
        raise HTTPException(404)
    await memory.delete_documents(workspace_id, external_ids=[f"order-{number}"], session=session)
    await session.delete(order)
    await session.commit()


@app.get("/workspaces/{workspace_id}/orders")
async def find_orders(
    workspace_id: str,
    query: str,
    session: SessionDependency,
    memory: MemoryDependency,
    least: int = 0,
) -> list[dict[str, Any]]:
    hits = (await memory.search_statement(workspace_id, query)).subquery()
    found = (
        select(Order.number, Order.amount, hits.c.score)
        .join(
            hits,
            and_(
                Order.document_owner_id == hits.c.owner_id, Order.document_id == hits.c.document_id
            ),
        )
        .where(Order.amount >= least)
        .order_by(hits.c.rank)
    )
    return [dict(row._mapping) for row in await session.execute(found)]


@app.exception_handler(IntegrityError)
async def conflict(request: Request, error: IntegrityError) -> JSONResponse:
    return JSONResponse({"detail": "The order is wrong, or somebody else changed it."}, 409)


@app.get("/health")
async def health(memory: MemoryDependency, response: Response) -> Health:
    found = await memory.health()
    response.status_code = 200 if found.healthy else 503
    return found
