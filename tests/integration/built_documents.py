"""Documents built for a caller's session, and the rows that they become."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from integration.helpers import paragraphs
from psycopg.rows import dict_row
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

TEXT = "# Leave\n\n" + paragraphs("one", "two", "three")
SHORTER = "# Leave\n\n" + paragraphs("zero", "two", "four", "one")
DETAILS: dict[str, Any] = {
    "document_type": "markdown",
    "id_at_origin": "anna",
    "additional_metadata": {"team": "x", "when": [1, None, {"a": "b"}]},
    "document_date": "2025-03-01",
    "language": "english",
}
# Of what add_document and the session would write alike; times and ids differ.
WRITTEN = {
    "documents": "owner_id, external_id, id_at_origin, document_name, document_type, "
    "document_date, language, metadata, content_hash, content, chunk_count, "
    "updated_at = created_at AS is_new",
    "chunks": "owner_id, position, headings, content, content_hash, start_offset, end_offset, "
    "token_count, language, (words).terms, (words).lexical::text",
    "embeddings": "owner_id, space_id, embedding::text",
    "embedding_jobs": "owner_id, space_id, state, attempts, leased_until, last_error",
}


@pytest.fixture(params=["psycopg", "psycopg2"])
def engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = engine_for(database_url, request.param)
    yield engine
    engine.dispose()


def engine_for(url: str, driver: str = "psycopg") -> Engine:
    module = pytest.importorskip(driver)
    return create_engine(
        f"postgresql+{driver}://", creator=lambda: module.connect(url), poolclass=NullPool
    )


def written(url: str, owner_id: str) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        for table, columns in WRITTEN.items():
            order = "content" if table == "chunks" else columns.split(", ")[-1].split(" AS ")[0]
            query = f"SELECT {columns} FROM llmemory.{table} WHERE owner_id = %s ORDER BY {order}"
            found[table] = [
                {**row, "owner_id": None} for row in connection.execute(query.encode(), [owner_id])
            ]
    # Keys, and the positions of weights, hold the owner's hash.
    for chunk in found["chunks"]:
        chunk["terms"] = len(chunk["terms"])
        chunk["lexical"] = sorted(re.findall(r":(\d+)", chunk["lexical"]))
    return found
