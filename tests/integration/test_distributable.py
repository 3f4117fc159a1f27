"""All that the library sends keeps to what Citus asks of statements and tables.

Citus itself is no part of this: ``tests/citus`` runs on it. The rules are those of docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from integration.distribution_rules import mutable_functions, problems, writes
from integration.helpers import fetch
from integration.tenants import CALLS, WITHOUT_SESSION, View, arguments
from plugins.memories import MakeMemory
from plugins.server import with_driver
from sqlalchemy import Text, UniqueConstraint
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from llmemory import AsyncMemory, HashEmbedder, LLMemoryError, Settings
from llmemory.models import tables_for
from llmemory.statements import chunks, documents, jobs, maintenance, queue, reembedding, spaces
from llmemory.statements.row_level_security import owned_tables

OWNER = "o'reilly"
ROUNDS = 4
SETTINGS = Settings(
    hnsw_owner_vectors=10, hnsw_refresh_s=0, word_count_chunks=5, word_count_minimum=1
)
TABLES = tables_for("llmemory")
OWNED = {table.name for table in owned_tables(TABLES)}
FILTERS: tuple[dict[str, Any], ...] = (
    {"team": "red"},
    {"team": {"$in": ["red", "blue"]}},
    {"team": {"$gt": "a", "$ne": "x"}},
    {"number": {"$gte": 1}},
    {"price": {"$lt": Decimal("10.5")}},
    {"due": {"$lt": datetime(2026, 1, 1, tzinfo=UTC)}},
    {"day": {"$gte": date(2026, 1, 1)}},
    {"$not": {"$or": [{"gone": {"$exists": True}}, {"tags": {"$contains": "new"}}]}},
)
SECTIONS = [f"# Part {number}\n\n{'Words of part ' * 60}{number}." for number in range(6)]

# What is about all owners, for operators, workers and upkeep: each node runs its part of it.
ALL_OWNERS = [
    *map(maintenance.count_rows, (TABLES.documents, TABLES.chunks, TABLES.embeddings)),
    maintenance.chunks_of_large_owners(TABLES),
    maintenance.counted_owners(TABLES),
    maintenance.vectors_of_large_owners(TABLES),
    queue.any_owner_with_due_jobs(TABLES),
    jobs.count_jobs(TABLES, of_owner=False),
    jobs.list_jobs(TABLES, of_owner=False, state=None),
    queue.next_owner_with_due_jobs(TABLES),
    jobs.requeue_jobs(TABLES),
    jobs.requeue_jobs(TABLES, of_space=True),
    reembedding.delete_jobs_of_space(TABLES),
    reembedding.delete_vectors(TABLES),
    reembedding.has_vectors(TABLES),
    reembedding.missing_chunks(TABLES),
    reembedding.missing_keys(TABLES),
    reembedding.page_end(TABLES),
    spaces.count_chunks(TABLES),
    spaces.count_vectors(TABLES),
]
# What takes faults, long work or much text to be sent.
RARE = [
    documents.set_content,
    maintenance.forget_terms,
    queue.contents,
    queue.next_owner_with_due_jobs,
    queue.renew_jobs,
]
# It limits what the coordinator waits for, and no node needs to know of it.
SET_FOR_A_SESSION = "SELECT set_config('statement_timeout', '0', false)"
# Stable functions that take a value that is bound, and no column.
TAKES_A_VALUE = {"json_to_recordset(json)"}


@pytest.fixture
async def engine(anyio_backend: str, database_url: str) -> Any:
    engine = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
    yield engine
    await engine.dispose()


@pytest.mark.anyio
@pytest.mark.direct("through a pooler fewer statements are sent")
async def test_every_statement_can_be_sent_to_citus(
    database_url: str,
    engine: AsyncEngine,
    make_memory: MakeMemory,
    round_trips: Callable[[AsyncMemory], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for builder in builders():
        builder.cache_clear()
    memory = make_memory(engine=engine, settings=SETTINGS)
    with round_trips(memory) as recorded:
        await make_every_call(View(memory, OWNER, engine, database_url))

    def texts(statements: Iterable[Any]) -> set[str]:
        return {str(statement.compile(dialect=engine.dialect)) for statement in statements}

    sent = {text for text in recorded if not text.startswith("COPY ")}
    sent |= texts(builder(TABLES) for builder in RARE)
    assert [builder.__name__ for builder in builders() if not builder.cache_info().currsize] == []
    about_all = texts(ALL_OWNERS)
    assert about_all <= sent
    allowed = {text: {"no owner"} for text in about_all} | {SET_FOR_A_SESSION: {"set_config"}}
    found = {text: problems(text, "llmemory", OWNED) for text in sent}
    assert {text: broken for text, broken in found.items() if broken} == allowed
    with psycopg.connect(database_url, autocommit=True) as connection:
        called = {text: mutable_functions(connection, text) for text in filter(writes, sent)}
    assert {text: names for text, names in called.items() if names - TAKES_A_VALUE} == {}


async def make_every_call(view: View) -> None:
    """Make all public calls, with what their statements may depend on."""
    memory, random = view.memory, Random(3)
    await memory.initialize()
    for number in range(1, ROUNDS + 1):
        for name in CALLS:
            if name == "delete_owner" or (name == "run_worker" and number > 1):
                continue
            given = arguments(random, 0, number)
            try:
                if name not in WITHOUT_SESSION and number % 3 == 0:
                    async with view.session() as session:
                        await CALLS[name](view, 0, given, session)
                else:
                    await CALLS[name](view, 0, given, None)
            except LLMemoryError:
                # A document that is gone.
                continue
        if number == 2:
            await memory.maintain()
    for chosen in FILTERS:
        await memory.search(OWNER, '"words of" part -none', metadata_filter=chosen, min_score=0.1)
        await memory.list_documents(OWNER, metadata_filter=chosen)
        await memory.delete_documents(OWNER, metadata_filter=chosen)
        statement = await memory.delete_statement(OWNER, metadata_filter=chosen)
        async with view.session() as session:
            await session.execute(statement)
    for sections, language in (
        (SECTIONS, "english"),
        (SECTIONS[1:], "english"),
        (SECTIONS[1:], "german"),
    ):
        await memory.add_document(
            OWNER, "Parts", "\n\n".join(sections), external_id="parts", language=language
        )
    await memory.search(OWNER, "part", language="german")
    await memory.list_jobs()
    await memory.requeue_jobs()
    await memory.process_pending_embeddings()
    await memory.health()
    await memory.reembed(HashEmbedder(dimensions=32))
    await memory.reembed(HashEmbedder())
    await memory.list_spaces()
    await memory.drop_space(2)
    await memory.maintain()
    await memory.delete_owner(OWNER)
    await memory.maintain()


def builders() -> Iterator[Any]:
    """Yield the functions that return the statements on documents, jobs and spaces."""
    for module in (chunks, documents, jobs, maintenance, queue, reembedding, spaces):
        for name in module.__all__:
            if hasattr(function := getattr(module, name), "cache_info"):
                yield function


def test_every_key_begins_with_the_owner() -> None:
    for table in owned_tables(TABLES):
        keys = [table.primary_key, *(index for index in table.indexes if index.unique)]
        keys += [key for key in table.constraints if isinstance(key, UniqueConstraint)]
        assert {next(iter(key.columns)).name for key in keys} == {"owner_id"}
        assert {(type(table.c.owner_id.type), table.c.owner_id.nullable)} == {(Text, False)}
        assert not any(column.identity for column in table.columns)


def test_foreign_keys_hold_the_owner_and_delete() -> None:
    for table in TABLES.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            ((first, *_), referred) = key.column_keys, key.elements[0].column
            assert (first, referred.name) == ("owner_id", "owner_id")
            assert (key.ondelete, key.onupdate) == ("CASCADE", None)
            assert referred.table.name in OWNED


def test_no_trigger_rule_or_sequence_is_made(database_url: str) -> None:
    made = """
        SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT rulename FROM pg_rules WHERE schemaname = 'llmemory'
        UNION ALL SELECT sequencename FROM pg_sequences
    """
    assert fetch(database_url, made) == []


BROKEN = {
    "SELECT * FROM llmemory.chunks": {"no owner"},
    "SELECT FROM llmemory.chunks AS c JOIN llmemory.documents AS d USING (document_id) "
    "WHERE c.owner_id = $1": {"no owner", "joined without the owner"},
    "SELECT FROM llmemory.chunks AS c WHERE c.owner_id = $1 AND EXISTS (SELECT FROM "
    "llmemory.documents AS d WHERE d.document_id = c.document_id)": {"no owner"},
    "SELECT FROM llmemory.chunks WHERE owner_id = $1 OR true": {"no owner"},
    "SELECT FROM llmemory.embedding_jobs FOR UPDATE SKIP LOCKED": {
        "no owner",
        "locked without the owner",
    },
    "UPDATE llmemory.documents SET owner_id = $1 WHERE owner_id = $1": {"a change of the owner"},
    "INSERT INTO llmemory.documents (owner_id) VALUES ($1) ON CONFLICT (document_id) DO NOTHING": {
        "a key without the owner"
    },
    "SET LOCAL a.b = 1; DELETE FROM llmemory.documents WHERE owner_id = 'a'": {
        "several in one message"
    },
    "SET hnsw.ef_search = 100": {"SET for a session"},
    "SELECT set_config('hnsw.ef_search', '100', true)": {"set_config"},
}


@pytest.mark.parametrize("statement", BROKEN)
def test_the_rules_find_what_breaks_them(statement: str) -> None:
    assert problems(statement, "llmemory", OWNED) == BROKEN[statement]


def test_a_join_by_owner_gives_the_owner_to_both() -> None:
    joined = (
        "SELECT FROM llmemory.chunks AS c JOIN llmemory.documents AS d "
        "ON d.owner_id = c.owner_id AND d.document_id = c.document_id "
    )
    assert problems(f"{joined} WHERE d.owner_id = $1::text", "llmemory", OWNED) == set()
    assert problems(joined, "llmemory", OWNED) == {"no owner"}


@pytest.mark.parametrize(
    ("statement", "called"),
    [
        ("UPDATE {0} SET updated_at = now() WHERE owner_id = $1", {"now()"}),
        ("UPDATE {0} SET updated_at = current_timestamp", {"the current time"}),
        (
            "DELETE FROM {0} WHERE external_id::timestamptz < $1",
            {"timestamptz_in(cstring,oid,integer)"},
        ),
        (
            "WITH old AS (DELETE FROM {0} WHERE random() < 0.5 RETURNING 1) SELECT FROM old, now()",
            {"random()"},
        ),
        (
            "DELETE FROM {0} WHERE document_id IN (SELECT document_id FROM {0} "
            "WHERE created_at < now())",
            set(),
        ),
    ],
)
def test_what_a_write_calls_is_found(statement: str, called: set[str], database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        found = mutable_functions(connection, statement.format("llmemory.documents"))
    assert found == called
