"""Bad input: each has its named error, a message that helps, and nothing is stored."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from integration.helpers import OddEmbedder, chain, fetch, rows
from plugins.memories import MakeMemory
from plugins.server import with_driver
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from llmemory import (
    AsyncMemory,
    ClosedError,
    ConfigurationError,
    ConflictError,
    DimensionMismatch,
    DocumentNotFoundError,
    DocumentType,
    EmbedderMismatchError,
    EmbeddingError,
    ExtensionMissing,
    HashEmbedder,
    LLMemoryError,
    NewDocument,
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    Settings,
    StorageError,
    StorageUnavailable,
    ValidationError,
)

pytestmark = pytest.mark.anyio

SECRET = "hunter2-secret-word"
NUL = f"{SECRET}\0tail"
SURROGATE = f"{SECRET}\ud800tail"
DRIVERS = pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])


class Unknown:
    """No JSON value."""


class Number(float):
    """A number that is not finite, in disguise."""


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"inner": inner}
    return inner


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


# name of the argument, value, words of the message
BAD_TEXTS: list[tuple[str, Any, str]] = [
    ("owner_id", "", "empty or blank"),
    ("owner_id", " \t\n", "empty or blank"),
    ("owner_id", None, "text, int or UUID"),
    ("owner_id", True, "text, int or UUID"),
    ("owner_id", 1.5, "text, int or UUID"),
    ("owner_id", b"acme", "text, int or UUID"),
    ("owner_id", ["acme"], "text, int or UUID"),
    ("owner_id", NUL, "NUL"),
    ("owner_id", SURROGATE, "surrogate"),
    ("owner_id", "o" * 513, "max_id_bytes"),
    ("owner_id", "ü" * 257, "max_id_bytes"),
    ("owner_id", 10**600, "max_id_bytes"),
    ("owner_id", 10**6000, "max_id_bytes"),
]
BAD_DOCUMENTS: list[tuple[str, Any, str]] = [
    *BAD_TEXTS,
    ("document_name", "", "empty or blank"),
    ("document_name", "\u2003\u00a0", "empty or blank"),
    ("document_name", "\ufeff", "empty or blank"),
    ("document_name", None, "must be text"),
    ("document_name", 5, "must be text"),
    ("document_name", NUL, "NUL"),
    ("document_name", SURROGATE, "surrogate"),
    ("document_name", "n" * 1001, "1000"),
    ("content", "", "empty or blank"),
    ("content", " \n\t\r\n ", "empty or blank"),
    ("content", "\u200b\n\u2060", "empty or blank"),
    ("content", None, "must be text"),
    ("content", b"bytes", "must be text"),
    ("content", 5, "must be text"),
    ("content", NUL, "NUL"),
    ("content", SURROGATE, "surrogate"),
    ("content", f"{SECRET} " * 500_001, "max_content_bytes"),
    ("content", "x" * 200_000 + "\0", "NUL"),
    ("document_type", "nonsense", "must be one of"),
    ("document_type", "", "must be one of"),
    ("document_type", None, "must be one of"),
    ("document_type", 3, "must be one of"),
    ("document_type", NUL, "must be one of"),
    ("id_at_origin", "", "empty or blank"),
    ("id_at_origin", 1.0, "text, int or UUID"),
    ("id_at_origin", NUL, "NUL"),
    ("id_at_origin", SURROGATE, "surrogate"),
    ("id_at_origin", "o" * 513, "max_id_bytes"),
    ("external_id", "", "empty or blank"),
    ("external_id", False, "text, int or UUID"),
    ("external_id", NUL, "NUL"),
    ("external_id", SURROGATE, "surrogate"),
    ("external_id", "o" * 513, "max_id_bytes"),
    ("document_date", "yesterday", "ISO 8601"),
    ("document_date", "", "ISO 8601"),
    ("document_date", "2025-02-30", "ISO 8601"),
    ("document_date", 1_700_000_000, "ISO 8601"),
    ("document_date", "0001-01-01T00:00:00+14:00", "first or last year"),
    ("language", "klingon", "must be one of"),
    ("language", "", "must be one of"),
    ("language", 7, "must be one of"),
    ("language", "english'); DROP TABLE documents; --", "must be one of"),
    ("additional_metadata", [], "mapping"),
    ("additional_metadata", "text", "mapping"),
    ("additional_metadata", 5, "mapping"),
    ("additional_metadata", {"a": Unknown()}, "JSON"),
    ("additional_metadata", {"a": {1, 2}}, "JSON"),
    ("additional_metadata", {"a": b"bytes"}, "JSON"),
    ("additional_metadata", {"a": 1j}, "JSON"),
    ("additional_metadata", {1: "a"}, "keys must be text"),
    ("additional_metadata", {"a": {None: 1}}, "keys must be text"),
    ("additional_metadata", {"a": float("nan")}, "finite"),
    ("additional_metadata", {"a": [float("inf")]}, "finite"),
    ("additional_metadata", {"a": -float("inf")}, "finite"),
    ("additional_metadata", {"a": Number("nan")}, "finite"),
    ("additional_metadata", {"a": np.float64("nan")}, "finite"),
    ("additional_metadata", {"a": Decimal("NaN")}, "finite"),
    ("additional_metadata", {"a": Decimal("Infinity")}, "finite"),
    ("additional_metadata", {"a": NUL}, "NUL"),
    ("additional_metadata", {NUL: 1}, "NUL"),
    ("additional_metadata", {"a": {"b": [{"c": NUL}]}}, "NUL"),
    ("additional_metadata", {"a": SURROGATE}, "surrogate"),
    ("additional_metadata", {SURROGATE: 1}, "surrogate"),
    ("additional_metadata", nested(21), "max_metadata_depth"),
    ("additional_metadata", nested(5000), "max_metadata_depth"),
    ("additional_metadata", cyclic(), "max_metadata_depth"),
    ("additional_metadata", {"a": f"{SECRET} " * 6000}, "max_metadata_bytes"),
    ("additional_metadata", {"a": "ü" * 50_001}, "max_metadata_bytes"),
    ("additional_metadata", {str(n): n for n in range(20_000)}, "max_metadata_bytes"),
    ("additional_metadata", {"a": 10**400}, "digits"),
    ("additional_metadata", {"a": 10**5000}, "digits"),
]
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


def named(cases: list[tuple[str, Any, str]]) -> list[Any]:
    return [
        pytest.param(name, value, words, id=f"{name}-{number}")
        for number, (name, value, words) in enumerate(cases)
    ]


@pytest.fixture(scope="module")
def stored_database(server_url: str, template: str) -> Any:
    """A database with some documents in it, shared by all that must not change it."""
    from plugins.server import fresh_database

    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
async def kept(anyio_backend: str, stored_database: str) -> Any:
    """A memory of that database, and the id of a document in it."""
    memory = AsyncMemory(stored_database, embedder=HashEmbedder())
    result = await memory.add_document(
        "acme", "Policy", "Staff have 25 days of leave.", external_id="policy"
    )
    await memory.add_document("other", "Secret", "Other people's text.", external_id="theirs")
    yield memory, result.document_id
    await memory.close()


async def refuses(
    call: Callable[[], Awaitable[Any]],
    url: str,
    words: str,
    error: type[LLMemoryError] = ValidationError,
    before: dict[str, int] | None = None,
) -> LLMemoryError:
    """Check the whole promise about one refused call."""
    before = rows(url) if before is None else before
    with pytest.raises(LLMemoryError) as caught:
        await call()
    assert type(caught.value) is error
    assert words in str(caught.value)
    # Long enough to say what to do, short enough to be read; never a secret or the content.
    assert 15 <= len(str(caught.value)) < 600
    for problem in chain(caught.value):
        assert SECRET not in str(problem)
        assert SECRET not in repr(problem)
    assert rows(url) == before
    return caught.value


def good_document(**changes: Any) -> dict[str, Any]:
    return {
        "owner_id": "acme",
        "document_name": "Name",
        "content": "Some content of no importance.",
        **changes,
    }


@pytest.mark.parametrize(("name", "value", "words"), named(BAD_DOCUMENTS))
async def test_add_document_refuses(
    kept: Any, stored_database: str, name: str, value: Any, words: str
) -> None:
    error = await refuses(
        lambda: kept[0].add_document(**good_document(**{name: value})), stored_database, words
    )
    assert isinstance(error, ValidationError)
    assert isinstance(error, ValueError)
    assert error.field == name


@pytest.mark.parametrize(("name", "value", "words"), named(BAD_DOCUMENTS))
async def test_add_documents_refuses_a_list_as_a_whole(
    kept: Any, stored_database: str, name: str, value: Any, words: str
) -> None:
    documents = [good_document(), good_document(**{name: value}), good_document()]
    error = await refuses(lambda: kept[0].add_documents(documents), stored_database, words)
    assert isinstance(error, ValidationError)
    assert (error.index, error.field) == (1, name)
    assert "1" in str(error)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (5, "NewDocument"),
        ("text", "NewDocument"),
        (None, "NewDocument"),
        ({"owner_id": "acme", "document_name": "a"}, "content"),
        ({"document_name": "a", "content": "b"}, "owner_id"),
        ({**good_document(), "metadata": {}}, "metadata"),
        ({**good_document(), 5: 1}, "unknown"),
    ],
)
async def test_add_documents_refuses_what_is_no_document(
    kept: Any, stored_database: str, document: Any, words: str
) -> None:
    await refuses(lambda: kept[0].add_documents([document]), stored_database, words)


@pytest.mark.parametrize("documents", [None, 5, "text", good_document()])
async def test_add_documents_refuses_what_is_no_iterable_of_documents(
    kept: Any, stored_database: str, documents: Any
) -> None:
    await refuses(
        lambda: kept[0].add_documents(documents), stored_database, "iterable of NewDocument"
    )


async def test_add_documents_refuses_a_new_document_as_add_document_does(
    kept: Any, stored_database: str
) -> None:
    document = NewDocument(owner_id="acme", document_name="a", content="nul \0")
    await refuses(lambda: kept[0].add_documents([document]), stored_database, "NUL")


async def test_add_documents_from_an_iterator_stops_at_the_bad_one(memory: AsyncMemory) -> None:
    async def documents() -> Any:
        for number in range(600):
            yield good_document(content="" if number == 599 else f"Number {number}.")

    with pytest.raises(ValidationError) as caught:
        await memory.add_documents(documents())
    assert caught.value.index == 599
    # Whole batches before it may be stored, never the one it is in.
    assert (await memory.get_statistics("acme")).document_count in {0, 256, 512}


@pytest.mark.parametrize("embed", ["soon", "", True, 1, []])
async def test_embed_is_now_or_later(kept: Any, stored_database: str, embed: Any) -> None:
    memory, document_id = kept
    for call in (
        lambda: memory.add_document(**good_document(), embed=embed),
        lambda: memory.add_documents([good_document()], embed=embed),
        lambda: memory.update_document("acme", document_id, content="New.", embed=embed),
    ):
        await refuses(call, stored_database, '"now" or "later"')


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


@pytest.mark.parametrize(
    ("name", "value", "words"),
    named(
        [
            case
            for case in BAD_DOCUMENTS
            # None stays as it is; owner and external_id are not changed.
            if case[1] is not None and case[0] not in {"owner_id", "external_id"}
        ]
    ),
)
async def test_update_document_refuses(
    kept: Any, stored_database: str, name: str, value: Any, words: str
) -> None:
    memory, document_id = kept
    before = await memory.get_document("acme", document_id)
    await refuses(
        lambda: memory.update_document("acme", document_id, **{name: value}), stored_database, words
    )
    assert await memory.get_document("acme", document_id) == before


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


async def test_bad_files_are_refused(kept: Any, stored_database: str, tmp_path: Path) -> None:
    memory, _ = kept
    latin, empty, nul, pdf, large = (
        tmp_path / name for name in ("latin.txt", "empty.md", "nul.txt", "a.pdf", "large.txt")
    )
    latin.write_bytes("Grüße".encode("latin-1"))
    empty.write_text(" \n")
    nul.write_bytes(b"a\0b")
    pdf.write_bytes(b"%PDF-1.7")
    large.write_bytes(b"x" * 10_000_001)
    utf16 = tmp_path / "utf16.txt"
    utf16.write_bytes("some text".encode("utf-16"))
    for path, words in (
        (tmp_path / "missing.txt", "cannot be read"),
        (tmp_path, "cannot be read"),
        (tmp_path / "latin.txt" / "below", "cannot be read"),
        ("x" * 300, "cannot be read"),
        (latin, "UTF-8"),
        (utf16, "UTF-8"),
        (empty, "empty or blank"),
        (nul, "NUL"),
        (pdf, "convert"),
        (large, "max_content_bytes"),
        ("", "path"),
        ("a\0b", "path"),
        (5, "path"),
        (None, "path"),
        (b"bytes", "path"),
    ):
        await refuses(partial(memory.add_file, "acme", path), stored_database, words)
    good = tmp_path / "good.txt"
    good.write_text("Good text.")
    for name, value, words in (
        ("document_type", "nonsense", "must be one of"),
        ("document_name", " ", "empty or blank"),
        ("external_id", "", "empty or blank"),
        ("additional_metadata", {"a": float("nan")}, "finite"),
        ("document_date", "soon", "ISO 8601"),
        ("language", "klingon", "must be one of"),
    ):
        await refuses(
            partial(memory.add_file, "acme", good, **{name: value}), stored_database, words
        )


def test_a_file_that_never_ends_is_refused() -> None:
    script = """
import resource
from llmemory import Settings, ValidationError
from llmemory.files.reading import read_file

resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
try:
    read_file("/dev/zero", Settings())
except ValidationError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "/dev/zero" in run.stdout, run.stderr[-300:]


async def test_what_the_guide_passes_is_not_bad_input(memory: AsyncMemory) -> None:
    owner, origin = uuid4(), 42
    moment = datetime(2025, 1, 31, 9, 30)
    result = await memory.add_document(
        owner,
        "",
        "From: a@example.com",
        document_type="EMAIL",
        id_at_origin=origin,
        external_id=7,
        additional_metadata={
            "at": moment,
            "day": moment.date(),
            "id": owner,
            "price": Decimal("1.50"),
            "type": DocumentType.EMAIL,
            "to": ("a", "b"),
            "thread": None,
        },
    )
    document = await memory.get_document(str(owner), result.document_id)
    assert document.owner_id == str(owner)
    assert document.id_at_origin == "42"
    assert document.external_id == "7"
    assert document.document_name == "(no subject)"
    assert document.metadata == {
        "at": "2025-01-31T09:30:00",
        "day": "2025-01-31",
        "id": str(owner),
        "price": "1.50",
        "type": "email",
        "to": ["a", "b"],
        "thread": None,
    }


async def test_limits_are_settings(make_memory: MakeMemory) -> None:
    settings = Settings(
        max_content_bytes=20,
        max_name_length=3,
        max_id_bytes=36,
        max_query_length=5,
        max_limit=2,
        max_metadata_bytes=10,
        max_metadata_depth=1,
    )
    memory = make_memory(settings=settings)
    await memory.add_document("acme", "abc", "x" * 20, additional_metadata={"a": 1})
    for change in (
        {"content": "x" * 21},
        {"content": "ü" * 11},
        {"document_name": "abcd"},
        {"owner_id": "o" * 37},
        {"additional_metadata": {"a": "123456789"}},
        {"additional_metadata": {"a": [[]]}},
    ):
        with pytest.raises(ValidationError):
            await memory.add_document(**{**good_document(content="x", document_name="n"), **change})
    await memory.search("acme", "x" * 5, limit=2)
    for change in ({"query_text": "x" * 6}, {"limit": 3}):
        with pytest.raises(ValidationError):
            await memory.search(**{"owner_id": "acme", "query_text": "x", "limit": 1, **change})


@pytest.mark.parametrize(
    "schema", ["", "s" * 64, "ü" * 32, "a\0b", "\ud800", "pg_mine", "information_schema", 5]
)
async def test_bad_schema_names_are_refused(database_url: str, schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        AsyncMemory(database_url, schema=schema, embedder=HashEmbedder())


# -- connections ---------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def changed(url: str, *, user: str | None = None, host: str | None = None, path: str = "") -> str:
    parts = urlsplit(url)
    name = user or parts.netloc.rpartition("@")[0] or "postgres"
    place = host or parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{name}@{place}", path=path or parts.path).geturl()


async def fails(
    url: str,
    error: type[LLMemoryError],
    *words: str,
    call: Callable[[AsyncMemory], Any] | None = None,
) -> LLMemoryError:
    memory = AsyncMemory(url, embedder=HashEmbedder())
    try:
        with pytest.raises(LLMemoryError) as caught:
            await (call(memory) if call is not None else memory.initialize())
        assert type(caught.value) is error, caught.value
        assert any(word in str(caught.value) for word in words), caught.value
        for problem in chain(caught.value):
            assert SECRET not in str(problem)
            assert SECRET not in repr(problem)
        return caught.value
    finally:
        await memory.close()


CALLS: list[Callable[[AsyncMemory], Any]] = [
    lambda memory: memory.initialize(),
    lambda memory: memory.add_document("acme", "a", "b"),
    lambda memory: memory.add_documents([good_document()]),
    lambda memory: memory.search("acme", "a"),
    lambda memory: memory.list_documents("acme"),
    lambda memory: memory.get_document("acme", uuid4()),
    lambda memory: memory.delete_owner("acme"),
]


@DRIVERS
async def test_an_unreachable_server(driver: str) -> None:
    url = f"{driver}://me:{SECRET}@127.0.0.1:{closed_port()}/app"
    for call in CALLS:
        await fails(url, StorageUnavailable, "could not be reached", call=call)


@DRIVERS
async def test_a_host_that_does_not_exist(driver: str) -> None:
    await fails(f"{driver}://me:{SECRET}@no-such-host.invalid/app", StorageUnavailable, "reached")


@DRIVERS
async def test_a_role_that_does_not_exist(database_url: str, driver: str) -> None:
    url = changed(with_driver(database_url, driver), user=f"nobody_here:{SECRET}")
    await fails(url, ConfigurationError, "user", "password")


@DRIVERS
async def test_a_database_that_does_not_exist(database_url: str, driver: str) -> None:
    url = changed(
        with_driver(database_url, driver), user=f"postgres:{SECRET}", path="/no_such_database"
    )
    await fails(url, ConfigurationError, "does not exist")


@DRIVERS
@pytest.mark.parametrize(
    "rest",
    [
        "user:{}@host:port/app",
        "user:{}@[::1/app",
        "user:a/{}@host/app",
        "user:a#{}@host/app",
        "user:{}@host:99999999/app",
        "user:{}@host/app?sslmode",
    ],
)
async def test_a_malformed_url_never_shows_its_password(driver: str, rest: str) -> None:
    url = f"{driver}://{rest.format(SECRET)}"
    memory = AsyncMemory(url, embedder=HashEmbedder())
    with pytest.raises(LLMemoryError) as caught:
        await memory.initialize()
    assert isinstance(caught.value, ConfigurationError | StorageUnavailable)
    for problem in chain(caught.value):
        assert SECRET not in f"{problem} {problem!r}"
    assert SECRET not in f"{memory!r} {memory.settings!r} {memory.settings}"
    await memory.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://host/app", "sqlite:///file.db", "host/app", "://", "postgresql:/host", "http://host"],
)
async def test_not_a_postgresql_url(url: str) -> None:
    await fails(url, ConfigurationError, "postgresql://")


@DRIVERS
@pytest.mark.parametrize("query", ["sslmode=bogus", "no_such_parameter=1", "port=abc"])
async def test_an_unknown_parameter_of_the_url(database_url: str, driver: str, query: str) -> None:
    url = with_driver(database_url, driver)
    await fails(
        f"{url}{'&' if '?' in url else '?'}{query}",
        ConfigurationError,
        "connection string",
        query.partition("=")[0],
    )


@pytest.mark.parametrize("value", [5, b"postgresql://host/app", object(), ["a"]])
async def test_a_connection_string_is_text(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="connection"):
        AsyncMemory(value, embedder=HashEmbedder())


async def test_an_engine_is_asynchronous_and_postgresqls(database_url: str) -> None:
    engine = create_engine(with_driver(database_url, "postgresql+psycopg"))
    for wrong in (engine, "postgresql://host/app", 5):
        with pytest.raises(ConfigurationError, match=r"(?i)engine"):
            AsyncMemory.from_engine(wrong, embedder=HashEmbedder())  # type: ignore[arg-type]
    engine.dispose()
    engine_ = create_async_engine(with_driver(database_url, "postgresql+asyncpg"))
    with pytest.raises(ConfigurationError, match="not both"):
        AsyncMemory(database_url, engine=engine_, embedder=HashEmbedder())
    await engine_.dispose()


@pytest.mark.parametrize("value", ["openai", 5, object(), HashEmbedder])
async def test_an_embedder_is_one(database_url: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="embedder"):
        await AsyncMemory(database_url, embedder=value).initialize()


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimensions", 0), ("dimensions", -1), ("dimensions", "256"), ("dimensions", 16_001),
     ("model", ""), ("model", None), ("model", "a\0b")],
)  # fmt: skip
async def test_an_embedder_announces_sensible_things(
    make_memory: MakeMemory, name: str, value: Any
) -> None:
    embedder = HashEmbedder()
    setattr(embedder, name, value)
    with pytest.raises(ConfigurationError, match=name):
        await make_memory(embedder=embedder).initialize()


async def test_use_after_close(database_url: str) -> None:
    memory = AsyncMemory(database_url, embedder=HashEmbedder())
    document = await memory.add_document("acme", "a", "b")
    await memory.close()
    before = rows(database_url)
    for call in [
        *CALLS,
        lambda memory: memory.health(),
        lambda memory: memory.update_document("acme", document.document_id, content="c"),
        lambda memory: memory.delete_document("acme", document.document_id),
        lambda memory: memory.get_statistics("acme"),
        lambda memory: memory.search_with_documents("acme", "a"),
    ]:
        with pytest.raises(ClosedError, match="new one"):
            await call(memory)
    await memory.close()
    assert rows(database_url) == before


async def test_close_before_use(database_url: str) -> None:
    memory = AsyncMemory(database_url, embedder=HashEmbedder())
    await memory.close()
    with pytest.raises(ClosedError):
        await memory.initialize()


async def test_use_before_initialize_initializes(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    memory = make_memory(empty_database_url)
    await memory.add_document("acme", "Policy", "Staff have 25 days of leave.")
    await memory.initialize()
    assert len(await memory.search("acme", "leave")) == 1


async def test_a_missing_schema_is_only_checked_for_without_migrate(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    fetch(empty_database_url, "CREATE EXTENSION vector")
    memory = make_memory(empty_database_url, settings=Settings(migrate=False))
    with pytest.raises(SchemaMissing, match="llmemory db upgrade"):
        await memory.search("acme", "leave")
    assert not fetch(empty_database_url, "SELECT 1 FROM pg_namespace WHERE nspname = 'llmemory'")


async def test_a_missing_extension_says_what_to_run(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    memory = make_memory(empty_database_url, settings=Settings(migrate=False))
    with pytest.raises(ExtensionMissing, match="CREATE EXTENSION vector"):
        await memory.add_document("acme", "a", "b")


@pytest.mark.parametrize("revision", ["9999", "someone's"])
async def test_a_newer_schema_is_refused(
    make_memory: MakeMemory, database_url: str, revision: str
) -> None:
    fetch(database_url, "UPDATE llmemory.llmemory_version SET version_num = %s", revision)
    with pytest.raises(SchemaTooNew, match="newer") as caught:
        await make_memory().add_document("acme", "a", "b")
    assert isinstance(caught.value, SchemaOutOfDate)
    assert caught.value.found == revision
    assert not any(rows(database_url).values())


async def test_tables_that_vanish(memory: AsyncMemory, database_url: str) -> None:
    for call in CALLS[1:]:
        # What notices has the next call look again, and make them anew.
        await memory.initialize()
        fetch(database_url, "DROP SCHEMA llmemory CASCADE")
        with pytest.raises(SchemaError, match="llmemory db upgrade"):
            await call(memory)


async def test_a_role_without_privileges(make_memory: MakeMemory, database_url: str) -> None:
    role = f"weak_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            memory = make_memory(changed(database_url, user=role))
            with pytest.raises(LLMemoryError) as caught:
                await memory.add_document("acme", "a", "b")
            assert isinstance(caught.value, ConfigurationError | SchemaError)
            assert "grant" in str(caught.value)
            await memory.close()
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def test_a_server_that_ends_the_connections(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    await memory.add_document("acme", "a", "b")
    fetch(
        driver_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    for _ in range(10):
        try:
            await memory.list_documents("acme")
        except StorageUnavailable:
            continue
        break
    assert (await memory.list_documents("acme")).total_count == 1


# -- embedders -----------------------------------------------------------------------------------


async def test_another_embedder_names_both(make_memory: MakeMemory, database_url: str) -> None:
    await make_memory().add_document("acme", "a", "b")
    for embedder in (HashEmbedder(8), OddEmbedder()):
        with pytest.raises(EmbedderMismatchError) as caught:
            await make_memory(embedder=embedder).search("acme", "a")
        assert isinstance(caught.value, ConfigurationError)
        assert caught.value.stored == "hash/hash (256 dimensions)"
        assert caught.value.given == "hash/hash (8 dimensions)"
        assert caught.value.stored in str(caught.value)
        assert caught.value.given in str(caught.value)


BAD_ANSWERS: dict[str, tuple[Any, type[EmbeddingError]]] = {
    "raises": (RuntimeError("the model is gone"), EmbeddingError),
    "os-error": (OSError("no network"), EmbeddingError),
    "timeout": (TimeoutError(), EmbeddingError),
    "nothing": (lambda count: np.zeros((0, 8)), EmbeddingError),
    "one-too-many": (lambda count: np.ones((count + 1, 8)), EmbeddingError),
    "too-short": (lambda count: np.ones((count, 7)), DimensionMismatch),
    "flat": (lambda count: np.ones(8 * count), EmbeddingError),
    "cubic": (lambda count: np.ones((count, 8, 1)), EmbeddingError),
    "nan": (lambda count: np.full((count, 8), np.nan), EmbeddingError),
    "infinite": (lambda count: np.full((count, 8), np.inf), EmbeddingError),
    "text": (lambda count: ["vector"] * count, EmbeddingError),
    "ragged": (lambda count: [[1.0, [2.0]]] * count, EmbeddingError),
    "numbers": (5, EmbeddingError),
    "objects": (lambda count: [object()] * count, EmbeddingError),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_embedder_that_misbehaves(
    make_memory: MakeMemory, database_url: str, name: str
) -> None:
    answer, error = BAD_ANSWERS[name]
    embedder = OddEmbedder()
    memory = make_memory(embedder=embedder)
    document = await memory.add_document("acme", "a", "First text.", external_id="a")
    embedder.answer = answer
    for call in (
        lambda: memory.add_document("acme", "b", f"{SECRET} text."),
        lambda: memory.add_document("acme", "a", f"{SECRET} text.", external_id="a"),
        lambda: memory.add_documents([good_document(content=SECRET)] * 3),
        lambda: memory.update_document("acme", document.document_id, content=SECRET),
        lambda: memory.search("acme", SECRET),
        lambda: memory.search("acme", SECRET, search_type="vector"),
    ):
        found = await refuses(call, database_url, "embedder", error)
        if isinstance(answer, BaseException):
            assert found.__cause__ is answer
    assert len(await memory.search("acme", "first", search_type="text")) == 1


async def test_an_embedders_own_error_passes_through(make_memory: MakeMemory) -> None:
    own = EmbeddingError("quota")
    memory = make_memory(embedder=OddEmbedder(own))
    with pytest.raises(EmbeddingError) as caught:
        await memory.add_document("acme", "a", "b")
    assert caught.value is own


# -- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["documents", "chunks", "embeddings"])
async def test_a_database_that_refuses_rows(
    make_memory: MakeMemory, driver_url: str, table: str
) -> None:
    memory = make_memory(driver_url)
    kept = await memory.add_document("acme", "a", "Old text.", external_id="a")
    fetch(driver_url, f"ALTER TABLE llmemory.{table} ADD CONSTRAINT no CHECK (false) NOT VALID")
    for call in (
        lambda: memory.add_document("acme", "b", f"{SECRET} text."),
        lambda: memory.add_document("acme", "a", f"{SECRET} text.", external_id="a"),
        lambda: memory.add_documents([good_document(content=SECRET)] * 3),
        lambda: memory.update_document("acme", kept.document_id, content=SECRET),
    ):
        # The cause is the driver's error: only ours must hold no content.
        before = rows(driver_url)
        with pytest.raises(StorageError) as caught:
            await call()
        assert caught.value.sqlstate == "23514"
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert rows(driver_url) == before
    assert (await memory.get_document("acme", kept.document_id)).content == "Old text."


async def test_a_conflict_that_no_retry_solves(
    memory: AsyncMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmemory.documents.writer.ATTEMPTS", 8)
    await memory.initialize()
    fetch(database_url, "CREATE UNIQUE INDEX one_name ON llmemory.documents (document_name)")
    await memory.add_document("acme", "Name", "b")
    with pytest.raises(ConflictError) as caught:
        await memory.add_document("acme", "Name", "b")
    assert caught.value.constraint == "one_name"
    assert rows(database_url)["documents"] == 1


async def test_no_free_connection(make_memory: MakeMemory) -> None:
    memory = make_memory(settings=Settings(pool_size=1, pool_overflow=0, pool_timeout_s=0.01))
    await memory.initialize()
    async with memory._database.connect():
        with pytest.raises(StorageUnavailable, match="pool_size"):
            await memory.list_documents("acme")


# -- health --------------------------------------------------------------------------------------


async def test_health_tells_a_problem_as_a_value(
    make_memory: MakeMemory, empty_database_url: str
) -> None:
    down = make_memory(f"postgresql://me:{SECRET}@127.0.0.1:{closed_port()}/app")
    found = await down.health()
    assert not found.healthy
    assert found.latency_ms is None
    assert "could not be reached" in (found.problem or "")
    assert SECRET not in found.model_dump_json()
    missing = await make_memory(empty_database_url).health()
    assert not missing.healthy
    assert "CREATE EXTENSION" in (missing.problem or "")
    nonsense = await make_memory("mysql://host/app").health()
    assert "postgresql://" in (nonsense.problem or "")
