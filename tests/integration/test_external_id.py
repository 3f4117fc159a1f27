"""``external_id``: adding the same key again replaces, one document or many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from integration.helpers import (
    broken_documents,
    paragraphs,
    rows,
    writes,
)
from integration.keyed_documents import items, only_document
from plugins.memories import MakeMemory

from llmemory import AsyncMemory, HashEmbedder

pytestmark = pytest.mark.anyio


async def test_the_same_content_is_neither_embedded_nor_written(
    make_memory: MakeMemory,
    driver_url: str,
    embedder: HashEmbedder,
    statements: Callable[[AsyncMemory], Any],
) -> None:
    memory = make_memory(driver_url)
    document = {
        "owner_id": "acme",
        "document_name": "Policy",
        "content": paragraphs("leave", "salary"),
        "external_id": "policy",
        "additional_metadata": {"a": [1, 2.5, None, {"b": "ü"}]},
        "document_date": "2025-01-31",
    }
    first = await memory.add_document(**document)
    assert (first.status, first.chunks_created, first.embeddings_created) == ("created", 2, 2)
    before, calls = await only_document(memory), embedder.calls
    with statements(memory) as sent:
        second = await memory.add_document(**document)
        (third,) = await memory.add_documents([document])
    assert second.status == third.status == "unchanged"
    assert second.document_id == third.document_id == first.document_id
    assert (second.chunks_created, second.embeddings_created) == (0, 0)
    assert embedder.calls == calls
    assert len(sent) == 2
    assert not writes(sent)
    assert await only_document(memory) == before


@pytest.mark.parametrize(
    "change",
    [
        {"additional_metadata": {"version": 2}},
        {"additional_metadata": None},
        {"document_name": "New name"},
        {"document_date": "2026-01-01"},
        {"id_at_origin": "elsewhere"},
        {"document_type": "report"},
    ],
)
async def test_the_same_content_with_other_details(
    memory: AsyncMemory, embedder: HashEmbedder, change: dict[str, Any]
) -> None:
    document = {
        "owner_id": "acme",
        "document_name": "Policy",
        "content": "Staff have 25 days of leave.",
        "external_id": "policy",
        "additional_metadata": {"version": 1},
    }
    first = await memory.add_document(**document)
    calls = embedder.calls
    again = await memory.add_document(**{**document, **change})
    assert (again.status, again.document_id) == ("unchanged", first.document_id)
    assert embedder.calls == calls
    stored = (await only_document(memory)).model_dump()
    for name, value in change.items():
        if name == "additional_metadata":
            assert stored["metadata"] == (value or {})
        else:
            assert str(stored[name]).startswith(value)


async def test_changed_content_replaces_and_keeps_the_id(
    make_memory: MakeMemory, driver_url: str, embedder: HashEmbedder
) -> None:
    memory = make_memory(driver_url)
    first = await memory.add_document(
        "acme", "Policy", paragraphs("leave", "salary", "travel"), external_id="policy"
    )
    created = (await only_document(memory)).created_at
    ids = {hit.content[:5]: hit.chunk_id for hit in await memory.search("acme", "leave salary")}
    texts = embedder.texts
    second = await memory.add_document(
        "acme", "Policy 2", paragraphs("new", "leave", "salary", "trips"), external_id="policy"
    )
    assert (second.status, second.document_id) == ("replaced", first.document_id)
    # Only what is new is embedded; the rest keeps its chunks, at their new places.
    assert (second.chunks_created, second.embeddings_created) == (4, 2)
    assert embedder.texts == texts + 2
    hits = {hit.content[:5]: hit for hit in await memory.search("acme", "leave salary trips")}
    assert {name: hits[name].chunk_id for name in ("leave", "salar")} == {
        name: ids[name] for name in ("leave", "salar")
    }
    assert hits["leave"].position == 1
    assert not await memory.search("acme", "travel", search_type="text")
    document = await only_document(memory)
    assert document.document_name == "Policy 2"
    assert document.created_at == created
    assert not broken_documents(driver_url)


async def test_a_text_that_occurs_twice_keeps_its_chunks_apart(
    memory: AsyncMemory, database_url: str
) -> None:
    for words in (["same"] * 3, ["same"] * 5, ["other", "same"], ["same"] * 2):
        await memory.add_document("acme", "a", paragraphs(*words), external_id="a")
        assert rows(database_url)["chunks"] == len(words)
        assert not broken_documents(database_url)


async def test_replacing_without_vectors_leaves_a_job_and_later_now_makes_them(
    memory: AsyncMemory, database_url: str
) -> None:
    first = await memory.add_document("acme", "a", "Old text.", external_id="a", embed="later")
    assert (first.embeddings_created, first.embeddings_queued) == (0, 1)
    assert rows(database_url)["embedding_jobs"] == 1
    second = await memory.add_document("acme", "a", "New text.", external_id="a", embed="now")
    assert second.embeddings_created == 1
    assert rows(database_url)["embedding_jobs"] == 0
    assert not broken_documents(database_url)


async def test_now_makes_the_vectors_that_later_left_out(
    memory: AsyncMemory, database_url: str
) -> None:
    await memory.add_document("acme", "a", "The text.", external_id="a", embed="later")
    await memory.add_document("acme", "a", "The text.", external_id="a", embed="now")
    assert len(await memory.search("acme", "text", search_type="vector")) == 1
    assert rows(database_url)["embedding_jobs"] == 0


async def test_keys_are_per_owner_and_compared_exactly(memory: AsyncMemory) -> None:
    keys = ["a", "A", "a ", " a", "á", "a\u0301", "1", "%", "'", '"', "\\", "a\nb", "null"]
    for owner in ("acme", "other"):
        for key in keys:
            await memory.add_document(owner, key, f"{owner} {key}", external_id=key)
    for owner in ("acme", "other"):
        assert (await memory.list_documents(owner)).total_count == len(keys)
    assert (await memory.add_document("acme", "1", "acme 1", external_id=1)).status == "unchanged"


async def test_bulk_with_one_key_twice_does_what_one_after_the_other_does(
    memory: AsyncMemory, database_url: str
) -> None:
    results = await memory.add_documents(items([1, 1], "First") + items([1], "Second"))
    assert [result.status for result in results] == ["created", "unchanged", "replaced"]
    assert len({result.document_id for result in results}) == 1
    assert (await only_document(memory)).content == "Second of 1."
    assert not broken_documents(database_url)


async def test_bulk_where_the_last_of_one_key_is_what_was_stored(memory: AsyncMemory) -> None:
    await memory.add_documents(items([1], "Old"))
    results = await memory.add_documents(items([1], "New") + items([1], "Old"))
    assert [result.status for result in results] == ["replaced", "replaced"]
    assert (await only_document(memory)).content == "Old of 1."


async def test_bulk_mixes_new_changed_and_unchanged(
    make_memory: MakeMemory, driver_url: str, embedder: HashEmbedder
) -> None:
    memory = make_memory(driver_url)
    await memory.add_documents(items(range(10)))
    texts = embedder.texts
    results = await memory.add_documents(
        items(range(5)) + items(range(5, 10), "New") + items(range(10, 15))
    )
    assert [result.status for result in results] == (
        ["unchanged"] * 5 + ["replaced"] * 5 + ["created"] * 5
    )
    assert embedder.texts == texts + 10
    assert rows(driver_url)["documents"] == 15
    assert not broken_documents(driver_url)
