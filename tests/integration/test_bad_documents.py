"""Bad documents: each has its named error, a message that helps, and nothing is stored."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from integration.refusals import (
    BAD_TEXTS,
    NUL,
    SECRET,
    SURROGATE,
    Number,
    Unknown,
    cyclic,
    good_document,
    named,
    nested,
    refuses,
)
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    DocumentType,
    NewDocument,
    Settings,
    ValidationError,
)

pytestmark = pytest.mark.anyio

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
