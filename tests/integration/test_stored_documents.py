"""Listing, updating, deleting and counting the documents that are there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from integration.helpers import broken_documents, fetch, paragraphs, rows, together
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    DocumentListResult,
    DocumentNotFoundError,
    DocumentType,
    HashEmbedder,
)

pytestmark = pytest.mark.anyio


async def test_paging(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": str(number),
            "content": "Text.",
            "document_type": "email" if number < 5 else "report",
        }
        for number in range(25)
    )
    await memory.add_document("other", "theirs", "Text.")
    seen: list[str] = []
    for offset in range(0, 40, 10):
        page = await memory.list_documents("acme", offset=offset, limit=10)
        assert isinstance(page, DocumentListResult)
        assert (page.total_count, page.offset, page.limit) == (25, offset, 10)
        assert page.has_more is (offset + 10 < 25)
        assert len(page.documents) == max(0, min(10, 25 - offset))
        assert all(document.content is None for document in page.documents)
        seen += [document.document_name for document in page.documents]
    assert seen == [str(number) for number in reversed(range(25))]
    assert not (await memory.list_documents("acme", offset=15, limit=10)).has_more
    assert (await memory.list_documents("acme")).limit == 20
    emails = await memory.list_documents("acme", document_type="email", limit=3)
    assert (emails.total_count, emails.has_more) == (5, True)
    nobody = await memory.list_documents("nobody")
    assert (nobody.documents, nobody.total_count, nobody.has_more) == ([], 0, False)
    for offset in (25, 10_000, 2**31, 2**40, 2**62):
        page = await memory.list_documents("acme", offset=offset, limit=1000)
        assert (page.documents, page.total_count, page.has_more) == ([], 25, False)


async def test_listing_is_one_statement(
    make_memory: MakeMemory, driver_url: str, statements: Callable[[AsyncMemory], Any]
) -> None:
    memory = make_memory(driver_url)
    result = await memory.add_document("acme", "a", "b")
    with statements(memory) as sent:
        await memory.list_documents("acme")
        await memory.get_document("acme", result.document_id)
        await memory.get_statistics("acme")
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"document_name": "New"}, "document_name", "New"),
        ({"document_type": "pdf"}, "document_type", DocumentType.PDF),
        ({"id_at_origin": 9}, "id_at_origin", "9"),
        ({"additional_metadata": {"b": 2}}, "metadata", {"b": 2}),
        ({"additional_metadata": {}}, "metadata", {}),
        ({"document_date": "2026-01-01"}, "document_date", datetime(2026, 1, 1, tzinfo=UTC)),
        ({"language": "german"}, "language", "german"),
        ({"content": "Fresh words."}, "content", "Fresh words."),
        ({}, "document_name", "Old"),
    ],
)
async def test_an_update_changes_what_is_given(
    make_memory: MakeMemory, driver_url: str, change: Any, field: str, value: Any
) -> None:
    memory = make_memory(driver_url)
    added = await memory.add_document(
        "acme",
        "Old",
        "Old words.",
        document_type="report",
        id_at_origin="ann",
        external_id="x",
        additional_metadata={"a": 1},
        document_date="2025-01-31",
    )
    before = await memory.get_document("acme", added.document_id)
    result = await memory.update_document("acme", added.document_id, **change)
    assert result.document_id == added.document_id
    assert result.status == ("replaced" if {"content", "language"} & set(change) else "unchanged")
    after = await memory.get_document("acme", added.document_id)
    expected = {**before.model_dump(), field: value, "updated_at": after.updated_at}
    assert after.model_dump() == expected
    assert (after.updated_at > before.updated_at) is bool(change)
    assert not broken_documents(driver_url)
    if "content" in change:
        assert await memory.search("acme", "old", search_type="text") == []
        assert len(await memory.search("acme", "fresh", search_type="text")) == 1


async def test_another_type_splits_anew(memory: AsyncMemory, database_url: str) -> None:
    content = "# One\n\nFirst part.\n\n# Two\n\nSecond part."
    added = await memory.add_document("acme", "a", content)
    assert added.chunks_created == 1
    changed = await memory.update_document("acme", added.document_id, document_type="markdown")
    assert (changed.status, changed.chunks_created) == ("replaced", 2)
    (hit, *_) = await memory.search("acme", "second")
    assert hit.headings == ["Two"]
    assert not broken_documents(database_url)


async def test_another_language_stems_anew_and_embeds_nothing(
    memory: AsyncMemory, embedder: HashEmbedder
) -> None:
    added = await memory.add_document("acme", "a", "Die Häuser wurden verkauft.")
    texts = embedder.texts
    await memory.update_document("acme", added.document_id, language="german")
    assert embedder.texts == texts
    assert len(await memory.search("acme", "Haus", search_type="text")) == 1


async def test_an_update_of_what_was_added_without_a_key(memory: AsyncMemory) -> None:
    ids = [(await memory.add_document("acme", "a", "Same text.")).document_id for _ in range(2)]
    await memory.update_document("acme", ids[0], content="Other text.")
    assert (await memory.get_document("acme", ids[1])).content == "Same text."


async def test_many_updates_at_once_end_whole(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    added = await memory.add_document("acme", "a", paragraphs("alpha", "beta"))
    await together(
        *(
            memory.update_document(
                "acme", added.document_id, content=paragraphs("alpha", f"own{number}")
            )
            for number in range(12)
        )
    )
    assert not broken_documents(driver_url)


async def test_delete_document(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    ids = [
        (await memory.add_document("acme", str(n), f"Text {n}.", embed=how)).document_id
        for n, how in enumerate(("now", "later", "now"))
    ]
    for document_id in ids[:2]:
        assert await memory.delete_document("acme", document_id) is None
        with pytest.raises(DocumentNotFoundError):
            await memory.get_document("acme", document_id)
        with pytest.raises(DocumentNotFoundError):
            await memory.delete_document("acme", document_id)
    assert rows(driver_url) == {
        "documents": 1,
        "chunks": 1,
        "embeddings": 1,
        "embedding_jobs": 0,
        "lexical_statistics": 0,
    }


async def test_delete_documents_by_anything(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)

    async def fill() -> list[str]:
        await memory.delete_owner("acme")
        return [
            result.document_id
            for result in await memory.add_documents(
                {
                    "owner_id": "acme",
                    "document_name": str(number),
                    "content": "Text.",
                    "document_type": "email" if number < 2 else "report",
                    "id_at_origin": number % 2,
                    "external_id": f"key {number}",
                    "additional_metadata": {"number": number},
                    "document_date": date(2025, 1, number + 1),
                }
                for number in range(4)
            )
        ]

    # Numbers stand for the documents' ids, which each round makes anew.
    for arguments, left in (
        ({"document_ids": [0, 1, uuid4(), "nonsense"]}, "23"),
        ({"document_ids": {3}}, "012"),
        ({"external_ids": ["key 0", "key 9"]}, "123"),
        ({"document_type": "email"}, "23"),
        ({"id_at_origin": 0}, "13"),
        ({"metadata_filter": {"number": 2}}, "013"),
        ({"date_from": "2025-01-03"}, "01"),
        ({"date_to": "2025-01-03"}, "3"),
        ({"document_type": "email", "id_at_origin": 1}, "023"),
        ({"document_ids": (0, 1), "external_ids": ["key 1", "key 2"]}, "023"),
        ({"document_ids": [], "document_type": "email"}, "0123"),
    ):
        ids = await fill()
        given: dict[str, Any] = {**arguments}
        if "document_ids" in given:
            given["document_ids"] = type(given["document_ids"])(
                UUID(ids[value]) if isinstance(value, int) else value
                for value in given["document_ids"]
            )
        assert await memory.delete_documents("acme", **given) == 4 - len(left)
        listed = (await memory.list_documents("acme")).documents
        assert sorted(document.document_name for document in listed) == list(left)


async def test_delete_owner_leaves_nothing_of_theirs_and_all_of_others(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)
    for owner in ("acme", "other"):
        for embed in ("now", "later"):
            await memory.add_documents(
                (
                    {"owner_id": owner, "document_name": str(n), "content": f"Text {n}."}
                    for n in range(600)
                ),
                embed=embed,
            )
        fetch(
            driver_url,
            "INSERT INTO llmemory.lexical_statistics VALUES (%s, 17, 1, now()), (%s, 0, 2, now())",
            owner,
            owner,
        )
    before = rows(driver_url, "other")
    assert before == {
        "documents": 1200,
        "chunks": 1200,
        "embeddings": 600,
        "embedding_jobs": 600,
        "lexical_statistics": 2,
    }
    assert await memory.delete_owner("acme") == 1200
    assert not any(rows(driver_url, "acme").values())
    assert rows(driver_url, "other") == before
    assert await memory.delete_owner("acme") == 0
    assert await memory.delete_owner("nobody") == 0
    # Every table with an owner was looked at.
    owned = fetch(
        driver_url,
        "SELECT count(DISTINCT table_name) FROM information_schema.columns "
        "WHERE table_schema = 'llmemory' AND column_name = 'owner_id'",
    )
    assert owned == [(len(before),)]


async def test_statistics(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    empty = await memory.get_statistics("acme")
    assert (empty.document_count, empty.chunk_count, empty.content_bytes) == (0, 0, 0)
    assert empty.documents_by_type == {}
    await memory.add_document("acme", "a", "ü" * 10, document_type="email")
    await memory.add_document("acme", "b", paragraphs("x", "y", "z"), document_type="report")
    await memory.add_document("acme", "c", "later", document_type="report", embed="later")
    await memory.add_document("other", "d", "not counted")
    found = await memory.get_statistics("acme")
    assert found.owner_id == "acme"
    assert (found.document_count, found.chunk_count) == (3, 5)
    assert (found.embedding_count, found.pending_embeddings) == (4, 1)
    assert found.content_bytes == 20 + len(paragraphs("x", "y", "z")) + 5
    assert found.documents_by_type == {DocumentType.EMAIL: 1, DocumentType.REPORT: 2}
    assert type(found).model_validate_json(found.model_dump_json()) == found


async def test_health(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    found = await memory.health()
    assert found.healthy, found.problem
    assert found.problem is None
    assert found.revision == found.expected_revision
    assert found.postgresql_version
    assert found.pgvector_version
    assert (found.embedding_model, found.embedding_dimensions) == ("hash", 256)
    assert (found.latency_ms or 0) > 0
