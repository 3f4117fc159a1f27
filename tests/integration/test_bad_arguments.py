"""Bad searches, filters, pages, sessions and ids: each is refused, and nothing is changed."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from integration.helpers import rows
from integration.refusals import (
    BAD_TEXTS,
    NUL,
    SECRET,
    SURROGATE,
    Unknown,
    good_document,
    named,
    nested,
    refuses,
)

from llmemory import (
    ConfigurationError,
    DocumentNotFoundError,
    ValidationError,
)

pytestmark = pytest.mark.anyio

BAD_FILTERS: list[tuple[str, Any, str]] = [
    ("metadata_filter", [], "mapping"),
    ("metadata_filter", "a = 1", "mapping"),
    ("metadata_filter", {"a": Unknown()}, "JSON"),
    ("metadata_filter", {"a": float("nan")}, "finite"),
    ("metadata_filter", {"a": NUL}, "NUL"),
    ("metadata_filter", {SURROGATE: 1}, "surrogate"),
    ("metadata_filter", {3: 1}, "keys must be text"),
    ("metadata_filter", nested(21), "max_metadata_depth"),
    ("metadata_filter", {"$where": "1 = 1"}, "unknown operator"),
    ("metadata_filter", {"price": {"$nonsense": SECRET}}, "unknown operator"),
    ("metadata_filter", {"$gt": SECRET}, "in the place of a key"),
    ("metadata_filter", {"a": {"$in": SECRET}}, "list of values"),
    ("metadata_filter", {"a": {"$gt": None}}, "needs a number"),
    ("metadata_filter", {"a": {"$eq": NUL}}, "NUL"),
    ("metadata_filter", {"a": {"$in": [SURROGATE]}}, "surrogate"),
    ("metadata_filter", {"$or": [{"a": n} for n in range(51)]}, "max_filter_conditions"),
    ("metadata_filter", {"a": {"$eq": "x" * 1_000_000}}, "max_metadata_bytes"),
    ("document_type", "nonsense", "must be one of"),
    ("document_type", 1, "must be one of"),
    ("id_at_origin", "", "empty or blank"),
    ("id_at_origin", NUL, "NUL"),
    ("id_at_origin", 1.5, "text, int or UUID"),
    ("date_from", "soon", "ISO 8601"),
    ("date_to", 5, "ISO 8601"),
    ("date_to", "2025-13-01", "ISO 8601"),
]

BAD_PAGES: list[tuple[str, Any, str]] = [
    ("limit", 0, "1 to 1000"),
    ("limit", -1, "1 to 1000"),
    ("limit", 1001, "max_limit"),
    ("limit", 10**30, "max_limit"),
    ("limit", "10", "integer"),
    ("limit", 2.0, "integer"),
    ("limit", True, "integer"),
    ("limit", None, "integer"),
    ("offset", -1, "0 or more"),
    ("offset", "0", "integer"),
    ("offset", 0.5, "integer"),
    ("offset", None, "integer"),
    ("offset", 2**63, "offset"),
]

BAD_SEARCHES: list[tuple[str, Any, str]] = [
    *BAD_TEXTS,
    *BAD_FILTERS,
    *BAD_PAGES,
    ("query_text", "", "empty or blank"),
    ("query_text", "  \n", "empty or blank"),
    ("query_text", "\u200b", "empty or blank"),
    ("query_text", None, "must be text"),
    ("query_text", 5, "must be text"),
    ("query_text", b"bytes", "must be text"),
    ("query_text", NUL, "NUL"),
    ("query_text", SURROGATE, "surrogate"),
    ("query_text", f"{SECRET} " * 600, "10000"),
    ("search_type", "fuzzy", "must be one of"),
    ("search_type", "", "must be one of"),
    ("search_type", None, "must be one of"),
    ("search_type", 1, "must be one of"),
    ("alpha", -0.1, "0 to 1"),
    ("alpha", 1.1, "0 to 1"),
    ("alpha", float("nan"), "0 to 1"),
    ("alpha", "0.5", "0 to 1"),
    ("alpha", True, "0 to 1"),
    ("language", "klingon", "must be one of"),
    ("language", 5, "must be one of"),
]


@pytest.mark.parametrize("session", ["session", 5, object()])
async def test_a_session_is_one_of_sqlalchemys(
    kept: Any, stored_database: str, session: Any
) -> None:
    memory, document_id = kept
    for call in (
        lambda: memory.add_document(**good_document(), session=session),
        lambda: memory.add_documents([good_document()], session=session),
        lambda: memory.update_document("acme", document_id, content="New.", session=session),
        lambda: memory.delete_document("acme", document_id, session=session),
        lambda: memory.search("acme", "leave", session=session),
        lambda: memory.list_documents("acme", session=session),
    ):
        await refuses(call, stored_database, "AsyncSession", ConfigurationError)


@pytest.mark.parametrize(("name", "value", "words"), named(BAD_TEXTS))
async def test_every_method_refuses_a_bad_owner(
    kept: Any, stored_database: str, tmp_path: Path, name: str, value: Any, words: str
) -> None:
    memory, document_id = kept
    file = tmp_path / "file.txt"
    file.write_text("Some text.")
    before = rows(stored_database)
    for call in (
        lambda: memory.add_file(value, file),
        lambda: memory.search(value, "leave"),
        lambda: memory.search_with_documents(value, "leave"),
        lambda: memory.list_documents(value),
        lambda: memory.get_document(value, document_id),
        lambda: memory.update_document(value, document_id, content="New."),
        lambda: memory.delete_document(value, document_id),
        lambda: memory.delete_documents(value, [document_id]),
        lambda: memory.delete_owner(value),
        lambda: memory.get_statistics(value),
    ):
        error = await refuses(call, stored_database, words, before=before)
        assert isinstance(error, ValidationError)
        assert error.field == name


@pytest.mark.parametrize("method", ["search", "search_with_documents"])
@pytest.mark.parametrize(("name", "value", "words"), named(BAD_SEARCHES))
async def test_search_refuses(
    kept: Any, stored_database: str, method: str, name: str, value: Any, words: str
) -> None:
    calls = kept[0].embedder.calls
    arguments = {"owner_id": "acme", "query_text": "leave", name: value}
    if name == "alpha" or (name == "language" and value is None):
        arguments["search_type"] = "hybrid"
    error = await refuses(
        lambda: getattr(kept[0], method)(**arguments),
        stored_database,
        words,
        before={**rows(stored_database)},
    )
    assert isinstance(error, ValidationError)
    assert error.field == name
    assert kept[0].embedder.calls == calls


@pytest.mark.parametrize(("name", "value", "words"), named([*BAD_FILTERS, *BAD_PAGES]))
async def test_list_documents_refuses(
    kept: Any, stored_database: str, name: str, value: Any, words: str
) -> None:
    await refuses(lambda: kept[0].list_documents("acme", **{name: value}), stored_database, words)


@pytest.mark.parametrize(("name", "value", "words"), named(BAD_FILTERS))
async def test_delete_documents_refuses(
    kept: Any, stored_database: str, name: str, value: Any, words: str
) -> None:
    await refuses(lambda: kept[0].delete_documents("acme", **{name: value}), stored_database, words)


@pytest.mark.parametrize(
    "method", ["search", "search_with_documents", "list_documents", "delete_documents"]
)
async def test_an_empty_range_of_dates_is_refused(
    kept: Any, stored_database: str, method: str
) -> None:
    arguments = {"query_text": "leave"} if method.startswith("search") else {}
    await refuses(
        lambda: getattr(kept[0], method)(
            "acme", date_from=date(2025, 2, 1), date_to=date(2025, 1, 31), **arguments
        ),
        stored_database,
        "date_to",
    )


async def test_delete_documents_needs_something_to_choose_by(
    kept: Any, stored_database: str
) -> None:
    memory, _ = kept
    await refuses(lambda: memory.delete_documents("acme"), stored_database, "delete_owner")
    await refuses(
        lambda: memory.delete_documents("acme", metadata_filter={}), stored_database, "delete_"
    )
    assert await memory.delete_documents("acme", []) == 0
    assert await memory.delete_documents("acme", external_ids=[]) == 0


@pytest.mark.parametrize("value", ["text", b"bytes", 5, {"a": 1}])
async def test_ids_to_delete_are_a_list(kept: Any, stored_database: str, value: Any) -> None:
    await refuses(lambda: kept[0].delete_documents("acme", value), stored_database, "document_ids")
    await refuses(
        lambda: kept[0].delete_documents("acme", external_ids=value),
        stored_database,
        "external_ids",
    )


@pytest.mark.parametrize("value", [5, None, b"bytes", 1.5, []])
async def test_a_document_id_is_text_or_uuid(kept: Any, stored_database: str, value: Any) -> None:
    memory, _ = kept
    for call in (
        lambda: memory.get_document("acme", value),
        lambda: memory.update_document("acme", value, content="New."),
        lambda: memory.delete_document("acme", value),
        lambda: memory.delete_documents("acme", [value]),
    ):
        await refuses(call, stored_database, "document_id")


@pytest.mark.parametrize(
    "value",
    [
        UUID(int=5),
        str(UUID(int=6)),
        "no-uuid",
        "",
        "\0",
        "\ud800",
        "' OR 1=1 --",
        "x" * 10_000,
        UUID(int=0),
    ],
)
async def test_a_missing_document_is_not_found(kept: Any, stored_database: str, value: Any) -> None:
    memory, _ = kept
    for call in (
        lambda: memory.get_document("acme", value),
        lambda: memory.update_document("acme", value, content="New."),
        lambda: memory.delete_document("acme", value),
    ):
        error = await refuses(call, stored_database, "list_documents", DocumentNotFoundError)
        assert isinstance(error, LookupError)
        assert isinstance(error, DocumentNotFoundError)
        assert error.document_id == str(value)[:100]
    assert await memory.delete_documents("acme", [value]) == 0


async def test_a_document_of_another_owner_is_not_found(kept: Any, stored_database: str) -> None:
    memory, document_id = kept
    for call in (
        lambda: memory.get_document("other", document_id),
        lambda: memory.update_document("other", document_id, content="Stolen."),
        lambda: memory.update_document("other", document_id, document_name="Stolen"),
        lambda: memory.delete_document("other", document_id),
    ):
        await refuses(call, stored_database, "list_documents", DocumentNotFoundError)
    assert await memory.delete_documents("other", [document_id]) == 0
    assert await memory.delete_documents("other", external_ids=["policy"]) == 0
    assert (await memory.get_document("acme", document_id)).content.startswith("Staff")
