"""How fast documents are added, beside hand-written asyncpg filling the same tables.

Both sides split nothing, hash the content, call the same embedder and fill the same columns and
indexes; they take turns, so that a change of the machine's speed meets both. The figures are
medians. By hand one connection writes; a bulk call writes with two, and with what it needs to
tell the planner of many new rows.

Run: python benchmarks/add.py [--collection FOLDER] [--passages 2000] [--dimensions 256]
     [--index] [--rounds 3] [--bulk-only] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from passages import passages
from uuid_utils.compat import uuid7

from llmemory import AsyncMemory, Settings

OURS, BY_HAND = "bench_ours", "bench_by_hand"
OWNER = "bench"
BATCH = 256
INDEXED = 1000

DOCUMENT_COLUMNS = (
    "owner_id document_id document_name document_type language metadata content_hash content "
    "chunk_count created_at updated_at"
).split()
CHUNK_COLUMNS = (
    "owner_id chunk_id document_id position headings content content_hash start_offset end_offset "
    "token_count language"
).split()
EMBEDDING_COLUMNS = ["owner_id", "chunk_id", "space_id", "embedding"]


class FastEmbedder:
    """Costs next to nothing, so that what is measured is the writing."""

    model = "fast"

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self._pool = np.random.default_rng(7).standard_normal((4096, dimensions), np.float32)

    async def embed(self, texts: Any, *, purpose: str) -> Any:
        """Return as many random vectors."""
        return self._pool[: len(texts)]


class ByHand:
    """What one would write for this one purpose, with nothing checked."""

    def __init__(self, connection: asyncpg.Connection, embedder: FastEmbedder) -> None:
        self._connection = connection
        self._embedder = embedder

    async def one_by_one(self, texts: list[str]) -> None:
        """Add each text in a transaction of its own."""
        insert = "INSERT INTO bench_by_hand.{} ({}) VALUES ({})"
        document, chunk, embedding = (
            insert.format(table, ", ".join(columns), ", ".join(marks))
            for table, columns, marks in (
                ("documents", DOCUMENT_COLUMNS, [f"${n + 1}" for n in range(11)]),
                ("chunks", CHUNK_COLUMNS, [f"${n + 1}" for n in range(11)]),
                ("embeddings", EMBEDDING_COLUMNS, ["$1", "$2", "$3", "$4"]),
            )
        )
        for text in texts:
            vectors = await self._embedder.embed([text], purpose="document")
            rows = self._rows(text, vectors[0])
            async with self._connection.transaction():
                await self._connection.execute(document, *rows[0])
                await self._connection.execute(chunk, *rows[1])
                await self._connection.execute(embedding, *rows[2])

    async def bulk(self, texts: list[str]) -> None:
        """Add the texts by COPY, some hundred in a transaction."""
        copy = self._connection.copy_records_to_table
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            vectors = await self._embedder.embed(batch, purpose="document")
            rows = [self._rows(*pair) for pair in zip(batch, vectors, strict=True)]
            async with self._connection.transaction():
                for number, (table, columns) in enumerate(
                    (
                        ("documents", DOCUMENT_COLUMNS),
                        ("chunks", CHUNK_COLUMNS),
                        ("embeddings", EMBEDDING_COLUMNS),
                    )
                ):
                    await copy(
                        table,
                        schema_name=BY_HAND,
                        columns=columns,
                        records=[row[number] for row in rows],
                    )

    def _rows(self, text: str, vector: Any) -> tuple[tuple[Any, ...], ...]:
        now = datetime.now(UTC)
        document_id, chunk_id = uuid7(), uuid7()
        digest = hashlib.sha256(text.encode()).digest()
        return (
            (OWNER, document_id, "x", "general", "english", "{}", digest, text, 1, now, now),
            (OWNER, chunk_id, document_id, 0, [], text, digest, 0, len(text), 100, "english"),
            (OWNER, chunk_id, 1, vector),
        )


async def measured(
    name: str,
    ours: Callable[[], Awaitable[Any]],
    hand: Callable[[], Awaitable[Any]],
    *,
    count: int,
    rounds: int,
) -> None:
    """Print passages per second of both and the ratio, medians of the rounds."""
    speeds: list[tuple[float, float]] = []
    for _ in range(rounds):
        times = []
        for side in (ours, hand):
            started = time.perf_counter()
            await side()
            times.append(time.perf_counter() - started)
        speeds.append((count / times[0], count / times[1]))
    medians = [statistics.median(column) for column in zip(*speeds, strict=True)]
    ratio = statistics.median(fast / slow for fast, slow in speeds)
    print(
        f"{name:12} llmemory {medians[0]:7.0f}/s   asyncpg by hand {medians[1]:7.0f}/s"
        f"   ratio {ratio:.2f}",
        flush=True,
    )


async def main(arguments: argparse.Namespace) -> None:
    """Measure one by one and in bulk."""
    texts = passages(arguments.collection, arguments.passages)
    embedder = FastEmbedder(arguments.dimensions)
    settings = Settings(chunk_size=100_000, embedding_batch_size=BATCH, hnsw_owner_vectors=INDEXED)
    url = arguments.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    async with (
        AsyncMemory(url, schema=OURS, embedder=embedder, settings=settings) as memory,
        AsyncMemory(url, schema=BY_HAND, embedder=embedder, settings=settings) as other,
    ):
        connection = await asyncpg.connect(url)
        await connection.set_type_codec(
            "halfvec", encoder=half_precision, decoder=bytes, format="binary"
        )
        hand = ByHand(connection, embedder)

        async def emptied(schema: str) -> None:
            await connection.execute(f"TRUNCATE {schema}.documents CASCADE")

        async def ours_one_by_one() -> None:
            await emptied(OURS)
            for text in texts:
                await memory.add_document(OWNER, "x", text)

        async def ours_bulk() -> None:
            await emptied(OURS)
            await memory.add_documents(
                {"owner_id": OWNER, "document_name": "x", "content": text} for text in texts
            )

        async def hand_one_by_one() -> None:
            await emptied(BY_HAND)
            await hand.one_by_one(texts)

        async def hand_bulk() -> None:
            await emptied(BY_HAND)
            await hand.bulk(texts)

        if arguments.index:
            # It stays when the tables are emptied.
            for schema, each in ((OURS, memory), (BY_HAND, other)):
                await each.add_documents(
                    {"owner_id": OWNER, "document_name": "x", "content": f"text {number}"}
                    for number in range(INDEXED)
                )
                assert (await each.maintain()).indexes_built == 1, schema
        print(
            f"{len(texts)} passages, {arguments.dimensions} dimensions, "
            f"{'with' if arguments.index else 'without'} HNSW index, {arguments.rounds} rounds"
        )
        given = {"count": len(texts), "rounds": arguments.rounds}
        await measured("bulk", ours_bulk, hand_bulk, **given)
        if not arguments.bulk_only:
            await measured("one by one", ours_one_by_one, hand_one_by_one, **given)
        await connection.execute(f"DROP SCHEMA {OURS} CASCADE")
        await connection.execute(f"DROP SCHEMA {BY_HAND} CASCADE")
        await connection.close()


def half_precision(vector: Any) -> bytes:
    """Return a vector in halfvec's binary form."""
    return len(vector).to_bytes(2, "big") + b"\0\0" + vector.astype(">f2").tobytes()


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--collection", type=Path, help="folder with corpus.jsonl")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--index", action="store_true", help="with an HNSW index")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bulk-only", action="store_true", help="not one by one")
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
