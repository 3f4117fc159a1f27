"""How the query's vector travels: as such where our own connections take it, else as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import AsyncMemory, HashEmbedder, Settings

pytestmark = pytest.mark.anyio

AS_TEXT = "AS TEXT) AS HALFVEC"
SUBJECTS = ("leave", "pumps", "cats", "snow")


async def filled(memory: AsyncMemory) -> list[tuple[str, float | None]]:
    """Add documents, if there are none, and return what is found and how similar it is."""
    for subject in SUBJECTS:
        await memory.add_document("acme", subject, f"All about {subject}.", external_id=subject)
    hits = await memory.search("acme", "about cats", search_type="vector")
    return [(hit.document_name, hit.similarity) for hit in hits]


@pytest.mark.direct("a pooler's connections take text")
async def test_as_such_by_our_own_connections_of_asyncpg(
    make_memory: MakeMemory, database_url: str, statements: Callable[[AsyncMemory], Any]
) -> None:
    embedder = HashEmbedder()
    given = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
    memories = {
        "own": make_memory(database_url, embedder=embedder),
        "psycopg": make_memory(with_driver(database_url, "postgresql+psycopg"), embedder=embedder),
        "pooled": make_memory(
            database_url, embedder=embedder, settings=Settings(transaction_pooler=True)
        ),
        "engine": AsyncMemory.from_engine(given, embedder=embedder),
    }
    found = {}
    goes_as_text = {}
    for name, memory in memories.items():
        await filled(memory)
        with statements(memory) as sent:
            found[name] = await filled(memory)
        searches = [statement for statement in sent if "vector_arm" in statement]
        goes_as_text[name] = [AS_TEXT in statement for statement in searches]
    await given.dispose()
    assert goes_as_text == {
        "own": [False],
        "psycopg": [True],
        "pooled": [True],
        "engine": [True],
    }
    assert len(found["own"]) == len(SUBJECTS)
    assert found["own"][0][0] == "cats"
    assert all(hits == found["own"] for hits in found.values())


async def test_as_text_by_a_connection_older_than_pgvector(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    memory = make_memory(empty_database_url)
    async with memory._database.connect():
        """The pool's connection, on which the tables are made as well."""
    first = await filled(memory)
    assert len(first) == len(SUBJECTS)
    assert await filled(memory) == first


async def test_vectors_are_read_as_before(make_memory: MakeMemory, database_url: str) -> None:
    memory = make_memory(database_url)
    await filled(memory)
    embeddings = memory._tables.embeddings
    async with memory._database.connect() as connection:
        (vector, *_) = (await connection.execute(embeddings.select())).scalars("embedding").all()
    assert len(vector) == memory.embedder.dimensions
