"""How the time of a search by words grows with an owner's chunks, from 10,000 to 1,000,000.

Text is synthetic; its words follow Zipf's law, so that the commonest stand in most chunks. Each
query has four words, one of them very common. Beside it, up to 100,000 chunks, what most libraries
do: ts_rank_cd over the chunks with any of the words, from a tsvector column with a GIN index.

Run: python benchmarks/growth.py [--sizes 10000 100000 1000000] [--queries 60] [--json FILE]
     [--plot FILE.png] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from uuid_utils.compat import uuid7

from llmemory import AsyncMemory, HashEmbedder

SCHEMA, OWNER = "bench_growth", "grows"
VOCABULARY = 200_000
WORDS = 60
BATCH = 5_000
MOST_BY_HAND = 100_000

BY_HAND = """
    SELECT chunk_id, ts_rank_cd(words, query) AS score
    FROM {schema}.by_hand, to_tsquery('english', $2) AS query
    WHERE owner_id = $1 AND words @@ query ORDER BY score DESC LIMIT 10
"""


class Language:
    """Words by frequency: the number n stands about n times as rarely as the first."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        rank = np.arange(1, VOCABULARY + 1)
        self._share = np.cumsum(1 / rank) / np.sum(1 / rank)

    def passages(self, count: int) -> list[str]:
        """Return passages of 60 words."""
        drawn = np.searchsorted(self._share, self._generator.random((count, WORDS)))
        return [" ".join(f"w{word}" for word in words) for words in drawn.tolist()]

    def query(self) -> str:
        """Return four words: a very common, a common and two rare ones."""
        tops = (3, 100, 5_000, 50_000)
        return " ".join(f"w{self._generator.integers(top // 3, top)}" for top in tops)


async def grow(connection: asyncpg.Connection, language: Language, start: int, size: int) -> None:
    """Store chunks until there are `size`, a document for every hundred."""
    now = datetime.now(UTC)
    for first in range(start, size, BATCH):
        texts = language.passages(min(BATCH, size - first))
        documents, chunks = [], []
        for number, text in enumerate(texts):
            if number % 100 == 0:
                document_id = uuid7()
                documents.append(
                    (OWNER, document_id, "x", "general", "english", "{}", b"", "", 100, now, now)
                )
            chunks.append(
                (OWNER, uuid7(), document_id, number % 100, [], text, b"", 0, 1, 1, "english")
            )
        for table, columns, rows in (
            (
                "documents",
                "owner_id document_id document_name document_type language metadata content_hash "
                "content chunk_count created_at updated_at",
                documents,
            ),
            (
                "chunks",
                "owner_id chunk_id document_id position headings content content_hash "
                "start_offset end_offset token_count language",
                chunks,
            ),
        ):
            await connection.copy_records_to_table(
                table, schema_name=SCHEMA, columns=columns.split(), records=rows
            )


async def timed(call: Awaitable[Any]) -> float:
    """Return milliseconds."""
    started = time.perf_counter()
    await call
    return (time.perf_counter() - started) * 1000


async def measure(
    memory: AsyncMemory, connection: asyncpg.Connection, size: int, queries: list[str]
) -> dict[str, Any]:
    """Return p50 and p95 of both ways at one size."""
    by_hand = None
    if size <= MOST_BY_HAND:
        await connection.execute(f"DROP TABLE IF EXISTS {SCHEMA}.by_hand")
        await connection.execute(
            f"CREATE TABLE {SCHEMA}.by_hand AS SELECT owner_id, chunk_id, "
            f"to_tsvector('english', content) AS words FROM {SCHEMA}.chunks"
        )
        await connection.execute(f"CREATE INDEX ON {SCHEMA}.by_hand USING gin (words)")
        await connection.execute(f"VACUUM ANALYZE {SCHEMA}.by_hand")
        by_hand = await connection.prepare(BY_HAND.format(schema=SCHEMA))
    times: dict[str, list[float]] = {"ours": [], "ts_rank_cd": []}
    for number, query in enumerate((*queries[:10], *queries)):
        ours = await timed(memory.search(OWNER, query, search_type="text"))
        if number >= 10:
            times["ours"].append(ours)
        if by_hand is not None:
            theirs = await timed(by_hand.fetch(OWNER, query.replace(" ", "|")))
            if number >= 10:
                times["ts_rank_cd"].append(theirs)
    row: dict[str, Any] = {"chunks": size}
    for name, values in times.items():
        row[name] = statistics.median(values) if values else None
        row[f"{name} p95"] = statistics.quantiles(values, n=20)[-1] if values else None
    return row


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the times over the sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, label in (("ours", "llmemory, BM25"), ("ts_rank_cd", "ts_rank_cd, OR")):
        points = [(row["chunks"], row[name]) for row in rows if row[name] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="chunks of the owner", ylabel="p50 in ms")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


async def main(options: argparse.Namespace) -> None:
    """Grow, maintain and measure, size by size."""
    url = options.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    language, asked = Language(1), Language(2)
    queries = [asked.query() for _ in range(options.queries)]
    rows = []
    async with AsyncMemory(url, schema=SCHEMA, embedder=HashEmbedder()) as memory:
        connection = await asyncpg.connect(url)
        stored = 0
        if options.again:
            stored = await connection.fetchval(f"SELECT count(*) FROM {SCHEMA}.chunks")
        else:
            await connection.execute(
                f"TRUNCATE {SCHEMA}.documents, {SCHEMA}.lexical_statistics CASCADE"
            )
        for size in [stored] if options.again else sorted(options.sizes):
            if size > stored:
                await grow(connection, language, stored, size)
                stored = size
                await connection.execute(f"VACUUM ANALYZE {SCHEMA}.documents, {SCHEMA}.chunks")
                await memory.maintain()
            row = await measure(memory, connection, size, queries)
            rows.append(row)
            line = f"{size:>9} chunks  p50 {row['ours']:7.2f}  p95 {row['ours p95']:7.2f} ms"
            if row["ts_rank_cd"] is not None:
                theirs = row["ts_rank_cd"]
                line += f"  ts_rank_cd {theirs:8.2f} ms, {theirs / row['ours']:.1f} x"
            print(line, flush=True)
        if not (options.keep or options.again):
            await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        await connection.close()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    if options.plot:
        plot(rows, options.plot)


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--plot", type=Path, help="picture to draw; needs matplotlib")
    parser.add_argument("--keep", action="store_true", help="leave the tables behind")
    parser.add_argument("--again", action="store_true", help="measure the tables left behind")
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
