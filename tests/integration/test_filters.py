"""Metadata filters: the SQL and an oracle in plain Python agree on all that can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.filter_oracle import FILTERS, documents, matches, stored
from plugins.server import fresh_database, with_driver

from llmemory import HashEmbedder, Memory, Settings, ValidationError

DOCUMENTS = 300
# A longer hunt: LLMEMORY_FILTER_EXAMPLES=5000.
EXAMPLES = int(os.environ.get("LLMEMORY_FILTER_EXAMPLES", "100"))
FILTERS_AN_EXAMPLE = 10


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


@pytest.mark.timeout(300)
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


KEYS = [
    *("it's", 'q"', "back\\slash", "per%cent %s %(x)s", "dollar $1 $$", ":name ::text", "a.b"),
    *("{a,b}", "?", "??", "🙂", "\ue000\uffff", "\x01\x7f\n", "'; DROP TABLE x; --", "0", ""),
    "k" * 20_000,
]


def test_hostile_keys_and_values_are_data(
    filled: tuple[Memory, dict[str, dict[str, Any]]],
) -> None:
    memory, _ = filled
    huge = "v" * 1_000_000
    options: dict[str, Any] = {"embedder": HashEmbedder()}
    options["settings"] = memory.settings.model_copy(
        update={"max_metadata_bytes": 5_000_000, "max_metadata_depth": 100}
    )
    deep: Any = "bottom"
    for _ in range(97):
        deep = {"deeper": [deep]} if isinstance(deep, str) else {"deeper": deep}
    with Memory(_url(memory), **options) as large:
        for text in [*KEYS, huge]:
            key = text if len(text) < 100_000 else "huge"
            large.add_document(
                "hostile",
                text[:900] or "-",
                "x",
                additional_metadata={key: text, f"l{key}": [text], f"o{key}": {key: text}},
            )
        large.add_document("hostile", "deep", "x", additional_metadata={"deep": deep})

        def found(wanted: dict[str, Any]) -> list[str]:
            listed = large.list_documents("hostile", metadata_filter=wanted)
            return [document.document_name for document in listed.documents]

        for text in [*KEYS, huge]:
            key = text if len(text) < 100_000 else "huge"
            name = text[:900] or "-"
            for wanted in (
                {key: text},
                {key: {"$in": [text, "other"]}},
                {key: {"$gte": text, "$lte": text}},
                {key: {"$exists": True}},
                {f"l{key}": {"$contains": text}},
                {f"l{key}": [text]},
                {f"o{key}": {key: {"$eq": text}}},
                {f"o{key}": {key: {"$gte": text}}},
                {f"o{key}": {"$contains": {key: text}}},
                {"$and": [{key: {"$ne": None}}, {"$not": {key: {"$ne": text}}}]},
            ):
                assert found(wanted) == [name], (wanted, name)
        assert found({"deep": deep}) == ["deep"]
        assert found({"deep": {"$contains": deep}}) == ["deep"]


def test_filters_choose_what_is_deleted(
    filled: tuple[Memory, dict[str, dict[str, Any]]],
) -> None:
    memory, _ = filled
    memory.add_documents(
        {
            "owner_id": owner,
            "document_name": str(number),
            "content": "Days of leave.",
            "additional_metadata": {"number": number, "on": date(2025, 1, number + 1)},
        }
        for owner in ("deleting", "keeping")
        for number in range(20)
    )
    wanted = {"$or": [{"number": {"$lt": 3}}, {"on": {"$gte": date(2025, 1, 20)}}]}
    hits = memory.search("deleting", "leave", metadata_filter=wanted, limit=50)
    assert {hit.document_name for hit in hits} == {"0", "1", "2", "19"}
    assert memory.delete_documents("deleting", metadata_filter=wanted) == 4
    assert memory.delete_documents("deleting", metadata_filter=wanted) == 0
    assert memory.list_documents("deleting").total_count == 16
    assert memory.list_documents("keeping").total_count == 20
    with pytest.raises(ValidationError, match="delete_owner"):
        memory.delete_documents("deleting", metadata_filter={"$or": [{"number": 5}, {}]})
    assert memory.list_documents("deleting").total_count == 16


def _url(memory: Memory) -> str:
    assert memory.settings.database_url is not None
    return memory.settings.database_url.get_secret_value()


@pytest.mark.parametrize("count", [2, 100, 101, 5000])
def test_lists_of_many_values(filled: tuple[Memory, dict[str, dict[str, Any]]], count: int) -> None:
    memory, stored_metadata = filled
    values = [value for document in stored_metadata.values() for value in document.values()]
    chosen = [*values[:: max(1, 2 * len(values) // count)], *range(count)][:count]
    for name in ("$in", "$nin"):
        wanted = {"a": {name: chosen}}
        listed = memory.list_documents("acme", metadata_filter=wanted, limit=1000)
        found = {document.document_name for document in listed.documents}
        assert found == {key for key, value in stored_metadata.items() if matches(value, wanted)}
        assert found or name == "$nin"
