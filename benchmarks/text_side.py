"""What the search by words costs a write, beside PostgreSQL's own to_tsvector of the same text.

The server computes each expression for every passage and returns one row; least times of the
rounds, since other work on the machine only ever adds. On a busy machine ask for processor time.

Run: python benchmarks/text_side.py [--collection FOLDER] [--passages 2000] [--rounds 5]
     [--processor-time] [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from functools import partial
from pathlib import Path

import asyncpg
from passages import passages

from llmemory import AsyncMemory, HashEmbedder

SCHEMA = "bench_text_side"
VECTOR = f"{SCHEMA}.search_vector(language, content)"
MEASURED = {
    "to_tsvector": "count(to_tsvector('english', content))",
    "search_vector": f"count({VECTOR})",
    "terms alone": f"count({SCHEMA}.lexical_terms(owner_id, {VECTOR}))",
    "lexical alone": f"count({SCHEMA}.lexical_weights(owner_id, {VECTOR}))",
    "column words": f"count({SCHEMA}.analysed_words(owner_id, {VECTOR}))",
}


async def main(arguments: argparse.Namespace) -> None:
    """Print each expression's time a passage and its ratio to to_tsvector's."""
    texts = passages(arguments.collection, arguments.passages)
    url = arguments.database_url
    if url is None:
        from llmemory import embedded

        url = embedded.start().url
    async with AsyncMemory(url, schema=SCHEMA, embedder=HashEmbedder()):
        connection = await asyncpg.connect(url)
        # Writing compiles nothing.
        await connection.execute("SET jit = off")
        await connection.execute("CREATE TEMPORARY TABLE given (owner_id text, content text)")
        await connection.copy_records_to_table(
            "given", columns=["owner_id", "content"], records=[("bench", text) for text in texts]
        )
        await connection.execute("ANALYZE given")
        clock = time.perf_counter
        if arguments.processor_time:
            clock = partial(processor_time, connection.get_server_pid())
        least: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for name, expression in MEASURED.items():
                rows = "SELECT *, 'english' AS language FROM given"
                started = clock()
                await connection.fetch(f"SELECT {expression} FROM ({rows}) AS text")
                spent_ms = (clock() - started) * 1000 / len(texts)
                least[name] = min(least.get(name, spent_ms), spent_ms)
        print(f"{len(texts)} passages, {arguments.rounds} rounds")
        for name, spent_ms in least.items():
            print(f"{name:<20}{spent_ms:8.3f} ms{spent_ms / least['to_tsvector']:8.2f} x")
        await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        await connection.close()


def processor_time(pid: int) -> float:
    """Return the seconds that a process has run for; Linux only."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--collection", type=Path, help="folder with corpus.jsonl")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true", help="of a server on this machine")
    parser.add_argument("--database-url", help="default: the embedded server")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
