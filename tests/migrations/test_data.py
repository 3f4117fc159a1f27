"""Migrating tables that hold rows, written as the first version wrote them."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID, uuid4

import psycopg
import pytest
from migrations.databases import transaction
from plugins.memories import MakeMemory
from psycopg.types.json import Jsonb

from llmemory import HashEmbedder, SearchType
from llmemory.schema import migrate

pytestmark = pytest.mark.anyio

REVISIONS = [script.revision for script in migrate.script_directory().walk_revisions()]
CONTENTS = {
    "Leave policy": ("english", "Staff have 25 days of leave."),
    "Urlaub": ("german", "Alle Häuser haben Gärten."),
    "Wetter": ("simple", "東京都の天気は晴れです。"),
    "Invoice": ("english", "INV-2024-0042 by HTTPServer.parseURL"),
}
QUERIES = {"Leave policy": "day", "Urlaub": "Garten", "Wetter": "天", "Invoice": "0042 parse"}
NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("revision", REVISIONS[1:])
async def test_rows_are_searchable_after(
    make_memory: MakeMemory, empty_database_url: str, embedder: HashEmbedder, revision: str
) -> None:
    with transaction(empty_database_url) as connection:
        migrate.upgrade(connection, "llmemory", revision)
    with psycopg.connect(empty_database_url) as rows:
        insert_space(rows, embedder)
        for name, (language, content) in CONTENTS.items():
            vectors = await embedder.embed([content], purpose="document")
            insert_document(rows, name, language, content, vectors[0].tolist())
        queued = insert_document(rows, "Queued", "english", "It waits for a vector.", None)
    with transaction(empty_database_url) as connection:
        migrate.upgrade(connection, "llmemory")
        migrate.downgrade(connection, "llmemory", revision)
        migrate.upgrade(connection, "llmemory")
    memory = make_memory(empty_database_url)
    (job,) = await memory.list_jobs("acme")
    assert job.document_id == str(queued)
    await memory.process_pending_embeddings()
    assert (await memory.get_statistics("acme")).pending_embeddings == 0
    for name, query in QUERIES.items():
        (hit,) = await memory.search("acme", query, search_type=SearchType.TEXT)
        assert hit.document_name == name
        content = CONTENTS[name][1]
        (hit,) = await memory.search("acme", content, search_type=SearchType.VECTOR, limit=1)
        assert (hit.document_name, hit.content) == (name, content)
    assert await memory.search("other", "leave") == []
    again = await memory.add_document("acme", "Queued", "New text of it.", external_id="Queued")
    assert again.status == "replaced"
    assert await memory.delete_owner("acme") == len(CONTENTS) + 1


def insert_space(connection: psycopg.Connection, embedder: HashEmbedder) -> None:
    connection.execute(
        "INSERT INTO llmemory.embedding_spaces "
        "(space_id, provider, model, dimensions, state, is_default, created_at) "
        "VALUES (1, %s, %s, %s, 'ready', true, %s)",
        [embedder.provider, embedder.model, embedder.dimensions, NOW],
    )


def insert_document(
    connection: psycopg.Connection,
    name: str,
    language: str,
    content: str,
    vector: list[float] | None,
) -> UUID:
    """Insert a document of one chunk with its vector, or with a job instead."""
    document_id, chunk_id = uuid4(), uuid4()
    digest = sha256(content.encode()).digest()
    connection.execute(
        "INSERT INTO llmemory.documents (owner_id, document_id, external_id, document_name, "
        "document_type, language, metadata, content_hash, content, chunk_count, created_at, "
        "updated_at) VALUES ('acme', %s, %s, %s, 'general', %s, %s, %s, %s, 1, %s, %s)",
        [document_id, name, name, language, Jsonb({}), digest, content, NOW, NOW],
    )
    connection.execute(
        "INSERT INTO llmemory.chunks (owner_id, chunk_id, document_id, position, headings, "
        "content, content_hash, start_offset, end_offset, token_count, language) "
        "VALUES ('acme', %s, %s, 0, '{}', %s, %s, 0, %s, 10, %s)",
        [chunk_id, document_id, content, digest, len(content), language],
    )
    if vector is None:
        connection.execute(
            "INSERT INTO llmemory.embedding_jobs (owner_id, job_id, document_id, space_id, state, "
            "attempts, available_at, created_at) VALUES ('acme', %s, %s, 1, 'queued', 0, %s, %s)",
            [uuid4(), document_id, NOW, NOW],
        )
    else:
        connection.execute(
            "INSERT INTO llmemory.embeddings (owner_id, chunk_id, space_id, embedding) "
            "VALUES ('acme', %s, 1, %s::text::halfvec)",
            [chunk_id, str(vector)],
        )
    return document_id
