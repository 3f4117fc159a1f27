"""Metadata filters: the SQL and an oracle in plain Python agree on all that can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.filter_oracle import FILTERS, documents, matches, stored
from plugins.server import fresh_database, with_driver

from llmemory import HashEmbedder, Memory, Settings

DOCUMENTS = 300
# A longer hunt: LLMEMORY_FILTER_EXAMPLES=5000.
EXAMPLES = int(os.environ.get("LLMEMORY_FILTER_EXAMPLES", "250"))
FILTERS_AN_EXAMPLE = 8


@pytest.fixture(scope="module", params=["postgresql", "postgresql+psycopg"])
def filled(
    request: pytest.FixtureRequest, server_url: str, template: str
) -> Iterator[tuple[Memory, dict[str, dict[str, Any]]]]:
    """A memory of generated documents, and their metadata by name as it is stored."""
    given = documents(DOCUMENTS, seed=7)
    with (
        fresh_database(server_url, template) as url,
        Memory(
            with_driver(url, request.param),
            embedder=HashEmbedder(),
            settings=Settings(max_filter_conditions=1000),
        ) as memory,
    ):
        memory.add_documents(
            {
                "owner_id": "acme",
                "document_name": str(number),
                "content": "Days of leave.",
                "additional_metadata": metadata,
            }
            for number, metadata in enumerate(given)
        )
        yield memory, {str(number): stored(metadata) for number, metadata in enumerate(given)}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(filters=st.lists(FILTERS, min_size=FILTERS_AN_EXAMPLE, max_size=FILTERS_AN_EXAMPLE))
def test_the_oracle_agrees(
    filled: tuple[Memory, dict[str, dict[str, Any]]], filters: list[dict[str, Any]]
) -> None:
    memory, stored_metadata = filled
    for wanted in filters:
        listed = memory.list_documents("acme", metadata_filter=wanted, limit=1000)
        found = {document.document_name for document in listed.documents}
        expected = {name for name, value in stored_metadata.items() if matches(value, wanted)}
        assert found == expected, wanted
