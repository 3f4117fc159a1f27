"""How fast and how right searches are, by owner size and filter, beside hand-written asyncpg.

All owners lie in one table. By hand means the best of three, each a statement written for one
owner and one filter: all that passes read and sorted, the same without parallel workers, or the
owner's HNSW index with the filter joined, its settings set on the connection beforehand. It takes
what an application's call would: a connection of asyncpg's pool, the vector as an array in
halfvec's binary form, the metadata decoded; only making objects of the rows is left out. All take
turns, query by query, in every order, so that a change of the machine's speed meets all, and what
is in memory helps all. Recall is that of the first 10 against reading all. Where chroma and lancedb
are installed, they hold the same vectors and take their turns as well, in this process and without
a server. Beside these stand the times of searches by words and of hybrid ones behind the same
filter.

Run: python benchmarks/search.py [--sizes 100 2000 20000] [--dimensions 256] [--queries 40]
     [--owners 1000] [--json FILE] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from in_process import Row, Store, installed
from uuid_utils.compat import uuid7

from llmemory import AsyncMemory, Settings

SCHEMA, ALONE = "bench_search", "bench_alone"
LIMIT = 10
WARM = 16
"""Rounds that do not count: until plans are made for any values, and filters are known."""
SMALL = 300
DIRECTIONS = 24
START = datetime(2020, 1, 1, tzinfo=UTC)
NO_FILTER = ("none", "", {})
MOST_IN_PROCESS = 20_000
TYPES = {"50 %": "general", "5 %": "report", "0.5 %": "email"}

SERIAL_SETTINGS = {"max_parallel_workers_per_gather": "0"}
INDEX_SETTINGS = {
    "hnsw.ef_search": "100",
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": "20000",
}


class Clusters:
    """An embedder whose texts name a cluster and a number.

    The vectors lie as those of real texts do: in clusters that are nearer to some than to others,
    and mostly in far fewer directions than they have dimensions.
    """

    model = "clusters"

    def __init__(self, dimensions: int, count: int) -> None:
        self.dimensions = dimensions
        generator = np.random.default_rng(7)
        self._directions = generator.standard_normal((DIRECTIONS, dimensions), np.float32)
        self._centres = generator.standard_normal((count, DIRECTIONS), np.float32)
        self._known: dict[str, Any] = {}

    def know(self, texts: Iterable[str]) -> None:
        """Make the vectors of queries beforehand, that no search is charged with it."""
        self._known = {text: self.vector(text) for text in texts}

    def vector(self, text: str) -> Any:
        """Return the vector of "cluster C number N ..."."""
        if (known := self._known.get(text)) is not None:
            return known
        words = text.split()
        generator = np.random.default_rng(int(words[3]))
        place = self._centres[int(words[1]) % len(self._centres)]
        place = place + 0.5 * generator.standard_normal(DIRECTIONS, np.float32)
        return place @ self._directions + generator.standard_normal(self.dimensions, np.float32)

    async def embed(self, texts: Any, *, purpose: str) -> Any:
        """Return one vector for each text."""
        return np.stack([self.vector(text) for text in texts])


def filters() -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Yield each filter: its name, its SQL, and its arguments for ``search``."""
    yield NO_FILTER
    for share, modulus in (("50 %", 2), ("5 %", 20), ("0.5 %", 200)):
        key = {f"one_in_{modulus}": True}
        yield f"metadata {share}", f"d.metadata @> '{json.dumps(key)}'", {"metadata_filter": key}
        kind = TYPES[share]
        yield f"type {share}", f"d.document_type = '{kind}'", {"document_type": kind}
        date = START + timedelta(days=1000 - 1000 // modulus)
        yield f"date {share}", f"d.document_date >= '{date}'", {"date_from": date}


async def fill(
    connection: asyncpg.Connection, schema: str, owner: str, count: int, embedder: Clusters
) -> list[Row]:
    """Store documents of one chunk each; words follow Zipf's law. Return them for other stores."""
    stored: list[Row] = []
    generator = np.random.default_rng(count)
    words = (generator.pareto(1.0, (count, 12)) * 3).astype(int) % 20_000
    places = generator.permutation(count)
    now = datetime.now(UTC)
    documents, chunks, embeddings = [], [], []
    for number in range(count):
        document_id, chunk_id = uuid7(), uuid7()
        rest = " ".join(f"w{word}" for word in words[number])
        text = f"cluster {number * 7} number {number} {rest}"
        # Metadata go with the cluster, types and dates do not.
        place = int(places[number])
        kind = "text"
        if place % 2:
            kind = "general"
        elif place % 20 == 4:
            kind = "report"
        elif place % 200 == 6:
            kind = "email"
        metadata = {f"one_in_{modulus}": number % modulus == 0 for modulus in (2, 20, 200)}
        date = START + timedelta(days=int(places[-number - 1]) % 1000)
        named = (owner, document_id, "x", kind, date, "english", json.dumps(metadata))
        documents.append((*named, b"", text, 1, now, now))
        chunks.append((owner, chunk_id, document_id, 0, [], text, b"", 0, len(text), 20, "english"))
        vector = embedder.vector(text)
        embeddings.append((owner, chunk_id, 1, vector))
        if count <= MOST_IN_PROCESS:
            day = (date - START).days
            row = {"id": str(chunk_id), "owner": owner, "vector": vector, "kind": kind, "day": day}
            stored.append({**row, **metadata})
    for table, columns, rows in (
        (
            "documents",
            "owner_id document_id document_name document_type document_date language metadata "
            "content_hash content chunk_count created_at updated_at",
            documents,
        ),
        (
            "chunks",
            "owner_id chunk_id document_id position headings content content_hash start_offset "
            "end_offset token_count language",
            chunks,
        ),
        ("embeddings", "owner_id chunk_id space_id embedding", embeddings),
    ):
        for start in range(0, len(rows), 2000):
            await connection.copy_records_to_table(
                table,
                schema_name=schema,
                columns=columns.split(),
                records=rows[start : start + 2000],
            )
    return stored


def by_hand(owner: str, dimensions: int, condition: str, *, through_index: bool) -> str:
    """Return the statement for one owner and one filter; it takes the vector and the limit."""
    vector, cast = ("e.embedding", f"(SELECT $1::halfvec({dimensions}))")
    if through_index:
        vector += f"::halfvec({dimensions})"
    joined = ""
    if condition:
        joined = (
            f"JOIN {SCHEMA}.chunks c ON c.owner_id = '{owner}' AND c.chunk_id = e.chunk_id "
            f"JOIN {SCHEMA}.documents d ON d.owner_id = '{owner}' "
            "AND d.document_id = c.document_id "
        )
        condition = f"AND {condition}"
    return (
        f"SELECT n.chunk_id, 1 - n.distance, c.content, c.headings, c.position, c.start_offset, "
        "c.end_offset, d.document_id, d.document_name, d.document_type, d.metadata, "
        "d.id_at_origin, d.external_id, d.document_date FROM ("
        f"SELECT e.chunk_id, {vector} <=> {cast} AS distance FROM {SCHEMA}.embeddings e {joined}"
        f"WHERE e.owner_id = '{owner}' AND e.space_id = 1 {condition} ORDER BY distance LIMIT $2"
        f") n JOIN {SCHEMA}.chunks c ON c.owner_id = '{owner}' AND c.chunk_id = n.chunk_id "
        f"JOIN {SCHEMA}.documents d ON d.owner_id = '{owner}' AND d.document_id = c.document_id "
        "ORDER BY n.distance"
    )


def in_process(options: dict[str, Any]) -> Row:
    """Return the filter of ``search`` as other stores take it."""
    if "metadata_filter" in options:
        return dict(options["metadata_filter"])
    if "document_type" in options:
        return {"kind": options["document_type"]}
    if "date_from" in options:
        return {"day": {"$gte": (options["date_from"] - START).days}}
    return {}


def question(text: str) -> str:
    """Return a query with words of all rarities; "cluster" and "number" are in all chunks."""
    number = int(text.split()[3])
    return f"{text} w{number % 3} w{number % 100 + 5} w{number % 100 * 31 + 40}"


async def timed(call: Awaitable[Any]) -> tuple[float, Any]:
    """Return milliseconds and result."""
    started = time.perf_counter()
    result = await call
    return (time.perf_counter() - started) * 1000, result


async def measure(
    memory: AsyncMemory,
    pools: dict[str, asyncpg.Pool],
    size: int,
    case: tuple[str, str, dict[str, Any]],
    queries: list[tuple[str, Any]],
    stores: list[Store],
) -> dict[str, Any]:
    """Return p50s, recall and hits of one owner and filter."""
    if size > MOST_IN_PROCESS:
        stores = []
    name, condition, options = case
    owner = f"owner {size}"
    statements = {
        way: by_hand(owner, memory.embedder.dimensions, condition, through_index=way == "index")
        for way in pools
        if way != "index" or size >= memory.settings.hnsw_owner_vectors
    }

    async def by_statement(way: str, text: str) -> set[str]:
        async with pools[way].acquire() as connection:
            rows = await connection.fetch(statements[way], vectors[text], LIMIT)
        return {str(row["chunk_id"]) for row in rows}

    async def by_search(text: str) -> set[str]:
        hits = await memory.search(owner, text, search_type="vector", limit=LIMIT, **options)
        return {hit.chunk_id for hit in hits}

    async def in_store(store: Store, text: str) -> set[str]:
        return store.search(owner, in_process(options), vectors[text], LIMIT)

    vectors = dict(queries)
    ways: dict[str, Callable[[str], Awaitable[set[str]]]] = {
        **{way: partial(by_statement, way) for way in statements},
        "ours": by_search,
        **{store.name: partial(in_store, store) for store in stores},
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, int] = dict.fromkeys(ways, 0)
    expected = 0
    orders = list(permutations(ways))
    random.Random(size).shuffle(orders)
    for round_, (text, _) in enumerate((*queries[:WARM], *queries)):
        hits: dict[str, set[str]] = {}
        # In every order: what one has read is in memory for the next.
        for way in orders[round_ % len(orders)]:
            spent, hits[way] = await timed(ways[way](text))
            times[way].append(spent)
        if round_ < WARM:
            continue
        expected += len(hits["all"])
        for way in times:
            found[way] += len(hits[way] & hits["all"])
    other_types: dict[str, list[float]] = {"text": [], "hybrid": []}
    for text in vectors:
        for kind, spent_ms in other_types.items():
            search = memory.search(owner, question(text), search_type=kind, limit=LIMIT, **options)
            spent_ms.append((await timed(search))[0])
    p50 = {way: statistics.median(values[WARM:]) for way, values in times.items()}
    recall = {way: found[way] / expected if expected else 1.0 for way in times}
    right = [way for way in statements if recall[way] >= 0.98]
    best = min(right, key=lambda way: p50[way])
    return {
        "size": size,
        "filter": name,
        "ours_ms": p50["ours"],
        "by_hand_ms": p50[best],
        "best_by_hand": best,
        "ratio": p50["ours"] / p50[best],
        "recall": recall["ours"],
        **{f"{kind}_ms": statistics.median(spent[6:]) for kind, spent in other_types.items()},
        "by_hand_all_ms": p50["all"],
        "by_hand_serial_ms": p50["serial"],
        "by_hand_index_ms": p50.get("index"),
        **{f"{store.name}_ms": p50[store.name] for store in stores},
        **{f"{store.name}_recall": recall[store.name] for store in stores},
    }


async def measure_words(
    among: AsyncMemory, alone: AsyncMemory, queries: list[tuple[str, Any]]
) -> dict[str, float]:
    """Return the p50s of a small owner's search by words, among others and alone."""
    times: dict[str, list[float]] = {"among": [], "alone": []}
    for number, _ in enumerate((*queries, *queries)):
        text = f"number w{number % 3} w{number + 5} w{number * 31 + 40}"
        for name, memory in (("among", among), ("alone", alone)):
            spent, _ = await timed(memory.search("small", text, search_type="text"))
            times[name].append(spent)
    p50 = {name: statistics.median(values[10:]) for name, values in times.items()}
    return {
        "among_ms": p50["among"],
        "alone_ms": p50["alone"],
        "ratio": p50["among"] / p50["alone"],
    }


async def main(arguments: argparse.Namespace) -> None:
    """Fill the tables, maintain them, measure, print."""
    url = arguments.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    embedder = Clusters(arguments.dimensions, max(50, max(arguments.sizes) // 100))
    settings = Settings(hnsw_owner_vectors=arguments.threshold)
    async with (
        AsyncMemory(url, schema=SCHEMA, embedder=embedder, settings=settings) as memory,
        AsyncMemory(url, schema=ALONE, embedder=embedder, settings=settings) as alone,
    ):
        others = [(f"other {number}", 10) for number in range(arguments.owners)]
        owners = [(f"owner {size}", size) for size in sorted(arguments.sizes)]
        stores = [] if arguments.reuse else installed()
        if not arguments.reuse:
            await prepare(url, SCHEMA, [*owners, ("small", SMALL), *others], embedder, stores)
            await prepare(url, ALONE, [("small", SMALL)], embedder)
        for each in (memory, alone):
            print("maintain:", await each.maintain())
        pools = {
            way: await asyncpg.create_pool(
                url, min_size=1, max_size=1, init=set_codecs, server_settings=values
            )
            for way, values in (("all", {}), ("serial", SERIAL_SETTINGS), ("index", INDEX_SETTINGS))
        }
        generator = np.random.default_rng(3)
        texts = [
            f"cluster {generator.integers(0, 10_000)} number {1_000_000 + number}"
            for number in range(arguments.queries)
        ]
        embedder.know([*texts, *map(question, texts)])
        queries = [(text, embedder.vector(text)) for text in texts]
        results = [
            await measure(memory, pools, size, case, queries, stores)
            for size in sorted(arguments.sizes)
            for case in filters()
        ]
        words = await measure_words(memory, alone, queries)
        show(results, words)
        if arguments.json:
            report = {"vectors": results, "words": words}
            arguments.json.write_text(json.dumps(report, indent=2))
        for pool in pools.values():
            await pool.close()
        if not arguments.keep:
            connection = await asyncpg.connect(url)
            await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
            await connection.execute(f"DROP SCHEMA {ALONE} CASCADE")
            await connection.close()


async def prepare(
    url: str,
    schema: str,
    owners: list[tuple[str, int]],
    embedder: Clusters,
    stores: Iterable[Store] = (),
) -> None:
    """Fill a schema anew, and have the server settle."""
    connection = await asyncpg.connect(url)
    await connection.execute(f"TRUNCATE {schema}.documents CASCADE")
    await connection.close()
    for number, (owner, count) in enumerate(owners):
        # A new connection now and then: plans of foreign keys are made for the tables' first size.
        if number % 200 == 0 or count > 1000:
            connection = await asyncpg.connect(url)
            await set_codecs(connection)
        rows = await fill(connection, schema, owner, count, embedder)
        for store in stores:
            if rows:
                store.add(rows)
        if number % 200 == 0 or count > 1000:
            await connection.execute("ANALYZE")
    await connection.execute("VACUUM ANALYZE")


async def set_codecs(connection: asyncpg.Connection) -> None:
    """Have vectors sent in binary, and metadata come as objects."""
    await connection.set_type_codec(
        "halfvec", encoder=half_precision, decoder=bytes, format="binary"
    )
    # In binary, as COPY takes it too: a version, then the text.
    await connection.set_type_codec(
        "jsonb",
        encoder=lambda text: b"\1" + text.encode(),
        decoder=lambda data: json.loads(data[1:]),
        schema="pg_catalog",
        format="binary",
    )


def half_precision(vector: Any) -> bytes:
    """Return a vector in halfvec's binary form."""
    return len(vector).to_bytes(2, "big") + b"\0\0" + vector.astype(">f2").tobytes()


def show(results: list[dict[str, Any]], words: dict[str, float]) -> None:
    """Print the tables."""
    print(
        f"{'chunks':>7}  {'filter':<15}{'ours ms':>9}{'by hand':>9}  {'way':<6}{'ratio':>6}  recall"
        f"{'text ms':>9}{'hybrid':>8}"
    )
    for row in results:
        line = (
            f"{row['size']:>7}  {row['filter']:<15}{row['ours_ms']:>9.2f}"
            f"{row['by_hand_ms']:>9.2f}  {row['best_by_hand']:<6}"
            f"{row['ratio']:>6.2f}  {row['recall']:.3f}"
            f"{row['text_ms']:>9.2f}{row['hybrid_ms']:>8.2f}"
        )
        for name in ("chroma", "lancedb"):
            if f"{name}_ms" in row:
                line += f"  {name} {row[f'{name}_ms']:.2f} ms {row[f'{name}_recall']:.2f}"
        print(line)
    print(
        f"words of an owner of {SMALL}: among others {words['among_ms']:.2f} ms, alone "
        f"{words['alone_ms']:.2f} ms, ratio {words['ratio']:.2f}"
    )


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 2000, 20_000])
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--owners", type=int, default=1000, help="further owners, of 10 chunks")
    parser.add_argument("--threshold", type=int, default=10_000, help="vectors for an index")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--keep", action="store_true", help="leave the tables behind")
    parser.add_argument("--reuse", action="store_true", help="take what --keep has left")
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
