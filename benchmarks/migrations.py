"""What each revision locks on filled tables, and for how long.

    LLMEMORY_TEST_DATABASE_URL=postgresql://... python benchmarks/migrations.py [CHUNKS]

Chunks of 100 words, ten to a document, lie there at the revision before. One transaction migrates
them; the locks that it holds are read before it commits. Docs: docs/migrations.md.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool

from llmemory.schema import migrate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plugins.server import fresh_database

SPACE = """
INSERT INTO llmemory.embedding_spaces
    (space_id, provider, model, dimensions, state, is_default, created_at)
VALUES (1, 'benchmark', 'random', 256, 'ready', true, now())
"""
DOCUMENTS = """
INSERT INTO llmemory.documents (owner_id, document_id, document_name, document_type, language,
    metadata, content_hash, content, chunk_count, created_at, updated_at)
SELECT 'owner-' || n % 10, md5('document' || n)::uuid, 'Document ' || n, 'general', 'english',
    jsonb_build_object('author', 'author ' || n % 500, 'year', 1990 + n % 35, 'number', n,
        'tags', jsonb_build_array('a' || n % 7, 'b' || n % 11), 'reviewed', n % 2 = 0),
    sha256(n::text::bytea), repeat('word ', 1000), 10, now(), now()
FROM generate_series(1, :chunks / 10) AS n
"""
# Words of a skewed distribution, as in real text.
CHUNKS = """
INSERT INTO llmemory.chunks (owner_id, chunk_id, document_id, position, headings, content,
    content_hash, start_offset, end_offset, token_count, language)
SELECT owner_id, gen_random_uuid(), document_id, position, '{}',
    (SELECT string_agg('word' || floor(20000 * random() ^ 3)::int, ' ')
     FROM generate_series(1, 100) WHERE position IS NOT NULL AND document_id IS NOT NULL),
    content_hash, 0, 600, 130, 'english'
FROM llmemory.documents, generate_series(0, 9) AS position
"""
EMBEDDINGS = """
INSERT INTO llmemory.embeddings (owner_id, chunk_id, space_id, embedding)
SELECT owner_id, chunk_id, 1,
    (SELECT array_agg(random()) FROM generate_series(1, 256) WHERE chunk_id IS NOT NULL)::halfvec
FROM llmemory.chunks
"""
LOCKS = """
SELECT c.relname, string_agg(DISTINCT l.mode, ', ') AS modes
FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND c.relkind = 'r' AND l.granted
    AND c.relname = ANY (:tables) AND l.mode ~ 'Exclusive' AND l.mode <> 'RowExclusiveLock'
GROUP BY c.relname ORDER BY c.relname
"""


def main(chunks: int) -> None:
    revisions = [script.revision for script in migrate.script_directory().walk_revisions()][::-1]
    for before, revision in pairwise(revisions):
        with database() as engine:
            fill(engine, before, chunks)
            measure(engine, revision, chunks)


@contextmanager
def database() -> Iterator[Engine]:
    with fresh_database(os.environ["LLMEMORY_TEST_DATABASE_URL"]) as url:
        yield create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
        )


def fill(engine: Engine, revision: str, chunks: int) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection, "llmemory", revision)
        for statement in (SPACE, DOCUMENTS, CHUNKS, EMBEDDINGS):
            values = {"chunks": chunks} if ":chunks" in statement else {}
            connection.execute(text(statement), values)


def measure(engine: Engine, revision: str, chunks: int) -> None:
    statements: list[tuple[float, str]] = []
    watch(engine, statements)
    with engine.begin() as connection:
        tables = sorted(migrate_tables(connection))
        started = time.perf_counter()
        migrate.upgrade(connection, "llmemory", revision)
        elapsed = time.perf_counter() - started
        locks = connection.execute(text(LOCKS), {"tables": tables}).all()
    print(f"{revision}: {elapsed:.2f} s, {chunks:,} chunks")
    for name, modes in locks:
        print(f"    {name}: {modes}")
    for seconds, statement in sorted(statements, reverse=True)[:3]:
        print(f"    {seconds:8.2f} s  {' '.join(statement.split())[:90]}")


def migrate_tables(connection: Connection) -> set[str]:
    found = connection.execute(
        text("SELECT tablename FROM pg_tables WHERE schemaname = 'llmemory'")
    )
    return set(found.scalars()) - {"llmemory_version"}


def watch(engine: Engine, statements: list[tuple[float, str]]) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def started(connection: Connection, *_: Any) -> None:
        connection.info["started"] = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def finished(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        statements.append((time.perf_counter() - connection.info["started"], statement))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
