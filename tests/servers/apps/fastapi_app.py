"""An ASGI application whose lifespan holds an AsyncMemory, and which watches its own loop."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI

from llmemory import AsyncMemory, HashEmbedder

TICK_S = 0.01


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncMemory(embedder=HashEmbedder()) as memory:
        app.state.memory = memory
        app.state.latest_s = 0.0
        ticking = asyncio.create_task(tick(app))
        yield
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking


app = FastAPI(lifespan=lifespan)


async def tick(app: FastAPI) -> None:
    """Sleep again and again, and note by how much it was ever woken too late."""
    while True:
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        app.state.latest_s = max(app.state.latest_s, time.perf_counter() - due)


@app.post("/add")
async def add(name: str) -> dict[str, Any]:
    added = await app.state.memory.add_document("acme", name, "Staff have 25 days of leave.")
    return {"pid": os.getpid(), "document_id": str(added.document_id)}


@app.post("/search")
async def search() -> dict[str, Any]:
    return {"pid": os.getpid(), "hits": len(await app.state.memory.search("acme", "leave"))}


@app.post("/latest")
async def latest() -> float:
    """Return by how many seconds a tick was late at most since the last time this was asked."""
    late, app.state.latest_s = app.state.latest_s, 0.0
    # Not within a measurement: collecting what the imports have left takes its time.
    gc.collect()
    gc.freeze()
    return float(late)
