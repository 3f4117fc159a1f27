"""Adding documents, one or many, and reading them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from integration.helpers import broken_documents, paragraphs, rows, writes
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    Document,
    DocumentAddResult,
    DocumentType,
    HashEmbedder,
    NewDocument,
    Progress,
    Settings,
    ValidationError,
)

pytestmark = pytest.mark.anyio


async def test_what_is_added_comes_back(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    started = datetime.now(UTC)
    content = "  Grüße 🙂 \r\n\ttabs, \u2028 and\x01 controls, \uffff.  "
    result = await memory.add_document(
        "acme",
        " Name ",
        content,
        document_type=DocumentType.REPORT,
        id_at_origin="ann@example.com",
        external_id="x/1",
        additional_metadata={"a": {"b": [1, 2.5, None, True, "ü"]}, "": ""},
        document_date=datetime(2025, 1, 31, 9, tzinfo=timezone(timedelta(hours=9))),
        language="german",
    )
    assert isinstance(result, DocumentAddResult)
    assert UUID(result.document_id)
    assert result.document_name == " Name "
    assert (result.status, result.chunks_created) == ("created", 1)
    assert (result.embeddings_created, result.embeddings_queued) == (1, 0)
    assert result.processing_time_ms > 0
    for document_id in (result.document_id, UUID(result.document_id), result.document_id.upper()):
        document = await memory.get_document("acme", document_id)
        assert isinstance(document, Document)
        assert document.content == content
    assert document.document_id == result.document_id
    assert (document.owner_id, document.document_name) == ("acme", " Name ")
    assert document.document_type is DocumentType.REPORT
    assert (document.id_at_origin, document.external_id) == ("ann@example.com", "x/1")
    assert document.metadata == {"a": {"b": [1, 2.5, None, True, "ü"]}, "": ""}
    assert document.document_date == datetime(2025, 1, 31, tzinfo=UTC)
    assert document.language == "german"
    assert document.chunk_count == 1
    assert started <= document.created_at <= document.updated_at <= datetime.now(UTC)
    assert Document.model_validate_json(document.model_dump_json()) == document


async def test_the_least_that_can_be_given(memory: AsyncMemory) -> None:
    result = await memory.add_document(owner_id="acme", document_name="n", content=".")
    document = await memory.get_document("acme", result.document_id)
    assert document.document_type is DocumentType.GENERAL
    assert document.metadata == {}
    assert document.language == "english"
    assert (document.id_at_origin, document.external_id, document.document_date) == (None,) * 3
    assert result.chunks_created == 1


@pytest.mark.parametrize("name", [None, "", "  "])
async def test_an_email_needs_no_subject(memory: AsyncMemory, name: str | None) -> None:
    result = await memory.add_document("acme", name, "Hello.", document_type="email")
    assert result.document_name == "(no subject)"
    (bulk,) = await memory.add_documents(
        [NewDocument(owner_id="acme", document_name=name, content="a", document_type="EMAIL")]
    )
    assert bulk.document_name == "(no subject)"
    other = await memory.update_document("acme", bulk.document_id, document_name="Subject")
    assert other.document_name == "Subject"


async def test_ids_may_be_numbers_and_uuids(memory: AsyncMemory) -> None:
    owner = uuid4()
    result = await memory.add_document(owner, "a", "Days of leave.", id_at_origin=7, external_id=8)
    await memory.add_document(12, "b", "Days of leave.", id_at_origin=owner)
    assert (await memory.get_document(str(owner), result.document_id)).external_id == "8"
    assert len(await memory.search(owner, "leave", id_at_origin="7")) == 1
    assert len(await memory.search("12", "leave", id_at_origin=str(owner))) == 1
    assert (await memory.get_statistics(12)).owner_id == "12"
    assert await memory.delete_documents(owner, external_ids=[8]) == 1
    assert await memory.delete_owner(12) == 1


async def test_two_documents_of_one_origin_and_name_are_two(memory: AsyncMemory) -> None:
    document = {
        "owner_id": "acme",
        "document_name": "Re: hi",
        "content": "Hello.",
        "id_at_origin": 1,
    }
    ids = {(await memory.add_document(**document)).document_id for _ in range(2)}
    ids |= {result.document_id for result in await memory.add_documents([document, document])}
    assert len(ids) == 4
    assert (await memory.list_documents("acme")).total_count == 4


async def test_metadata_of_many_kinds_comes_back_as_text(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)
    moment = datetime(2025, 1, 31, 9, 30, 15, 123456, tzinfo=UTC)
    number = uuid4()
    result = await memory.add_document(
        "acme",
        "a",
        "b",
        additional_metadata={
            "datetime": moment,
            "naive": moment.replace(tzinfo=None),
            "date": moment.date(),
            "time": moment.time(),
            "uuid": number,
            "decimal": Decimal("12.50"),
            "enum": DocumentType.PDF,
            "tuple": (1, (2,)),
            "large": 2**80,
            "float": 1e300,
            "tiny": 5e-324,
            "control": "\x01\x1f\x7f\u2028",
        },
    )
    found = (await memory.get_document("acme", result.document_id)).metadata
    assert found == {
        "datetime": "2025-01-31T09:30:15.123456+00:00",
        "naive": "2025-01-31T09:30:15.123456",
        "date": "2025-01-31",
        "time": "09:30:15.123456",
        "uuid": str(number),
        "decimal": "12.50",
        "enum": "pdf",
        "tuple": [1, [2]],
        "large": 2**80,
        "float": pytest.approx(1e300),
        "tiny": 5e-324,
        "control": "\x01\x1f\x7f\u2028",
    }
    assert datetime.fromisoformat(found["datetime"]) == moment
    assert (
        await memory.delete_documents(
            "acme",
            metadata_filter={"uuid": number, "decimal": Decimal("12.50"), "datetime": moment},
        )
        == 1
    )


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01", "0001-01-01T00:00:00.000001", "9999-12-31", "9999-12-31T23:59:59.999999",
     date.min, date.max, datetime.max, datetime.max.replace(tzinfo=UTC), "1582-10-10"],
)  # fmt: skip
async def test_the_ends_of_time(make_memory: MakeMemory, driver_url: str, moment: Any) -> None:
    memory = make_memory(driver_url)
    try:
        result = await memory.add_document("acme", "a", "Days of leave.", document_date=moment)
    except ValidationError:
        return
    found = (await memory.get_document("acme", result.document_id)).document_date
    assert found is not None
    assert found.year == (moment.year if isinstance(moment, date) else int(moment[:4]))
    assert (await memory.list_documents("acme")).documents[0].document_date == found
    assert (await memory.search("acme", "leave"))[0].document_date == found


async def test_bulk_takes_models_mappings_and_any_iterable(
    make_memory: MakeMemory, driver_url: str
) -> None:
    memory = make_memory(driver_url)

    def document(number: int) -> dict[str, Any]:
        return {"owner_id": "acme", "document_name": str(number), "content": f"Text {number}."}

    async def asynchronous() -> Any:
        for number in range(3):
            await asyncio.sleep(0)
            yield document(number)

    for documents in (
        [document(number) for number in range(3)],
        [NewDocument(**document(number)) for number in range(3)],
        tuple(document(number) for number in range(3)),
        (document(number) for number in range(3)),
        asynchronous(),
    ):
        results = await memory.add_documents(documents)
        assert [result.document_name for result in results] == ["0", "1", "2"]
        assert all(result.status == "created" for result in results)
    assert await memory.add_documents([]) == []
    assert (await memory.list_documents("acme")).total_count == 15
    assert not broken_documents(driver_url)


async def test_bulk_of_many_owners_and_sizes(
    make_memory: MakeMemory, driver_url: str, statements: Callable[[AsyncMemory], Any]
) -> None:
    memory = make_memory(driver_url)
    await memory.initialize()
    documents = [
        {
            "owner_id": f"owner {number % 7}",
            "document_name": str(number),
            "content": paragraphs(*(f"word{number}x{n}" for n in range(number % 4 + 1))),
            "external_id": number if number % 3 else None,
        }
        for number in range(600)
    ]
    progress: list[Progress] = []
    with statements(memory) as sent:
        results = await memory.add_documents(documents, on_progress=progress.append)
    assert [result.document_name for result in results] == [str(n) for n in range(600)]
    assert [result.chunks_created for result in results] == [n % 4 + 1 for n in range(600)]
    assert rows(driver_url)["embeddings"] == sum(n % 4 + 1 for n in range(600))
    assert not broken_documents(driver_url)
    # Never row by row.
    assert len(writes(sent)) < 100
    assert [step.documents for step in progress] == sorted({step.documents for step in progress})
    assert (progress[-1].documents, progress[-1].total) == (600, 600)
    assert progress[-1].chunks == sum(result.chunks_created for result in results)
    for owner in range(7):
        hits = await memory.search(f"owner {owner}", f"word{owner}x0", search_type="text")
        assert [hit.document_name for hit in hits] == [str(owner)]


async def test_an_error_of_the_callers_own_passes_through(
    memory: AsyncMemory, database_url: str
) -> None:
    def failing() -> Any:
        yield {"owner_id": "acme", "document_name": "a", "content": "b"}
        raise OSError("disk of mine")

    def fail(progress: Progress) -> None:
        raise KeyError("progress of mine")

    with pytest.raises(OSError, match="disk of mine"):
        await memory.add_documents(failing())
    documents = [
        {"owner_id": "acme", "document_name": str(n), "content": f"Text {n}."} for n in range(2000)
    ]
    with pytest.raises(KeyError, match="progress of mine"):
        await memory.add_documents(documents, on_progress=fail)
    assert rows(database_url)["documents"] < 2000
    assert not broken_documents(database_url)


async def test_batches_of_the_embedder_are_bounded(make_memory: MakeMemory) -> None:
    sizes: list[int] = []

    class Watching(HashEmbedder):
        async def embed(self, texts: Any, *, purpose: Any) -> Any:
            sizes.append(len(texts))
            return await super().embed(texts, purpose=purpose)

    memory = make_memory(embedder=Watching(), settings=Settings(embedding_batch_size=10))
    await memory.add_documents(
        {"owner_id": "acme", "document_name": "a", "content": f"Text {n}."} for n in range(95)
    )
    assert max(sizes) == 10
    assert sum(sizes) == 95


async def test_files(make_memory: MakeMemory, driver_url: str, tmp_path: Path) -> None:
    memory = make_memory(driver_url)
    guide = tmp_path / "Guide ü.md"
    guide.write_text("# Leave\n\nStaff have 25 days.\n", encoding="utf-8-sig")
    first = await memory.add_file("acme", guide)
    again = await memory.add_file("acme", str(guide))
    assert (first.status, again.status) == ("created", "unchanged")
    document = await memory.get_document("acme", first.document_id)
    assert document.document_name == "Guide ü.md"
    assert document.document_type is DocumentType.MARKDOWN
    assert document.content == "# Leave\n\nStaff have 25 days.\n"
    assert document.external_id == str(guide.resolve())
    guide.write_text("# Leave\n\nStaff have 30 days.\n")
    assert (await memory.add_file("acme", guide)).status == "replaced"
    other = await memory.add_file(
        "acme", guide, document_name="Other", external_id="mine", document_type="text"
    )
    assert other.status == "created"
    assert (await memory.add_file("other", guide)).status == "created"
    assert (await memory.list_documents("acme")).total_count == 2
