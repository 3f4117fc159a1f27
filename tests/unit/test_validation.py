"""Checking what callers pass: the pure half of the bad-input table."""

from __future__ import annotations

import enum
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemory import DocumentNotFoundError, DocumentType, NewDocument, Settings, ValidationError
from llmemory.validation.documents import checked_document
from llmemory.validation.filters import Filters
from llmemory.validation.metadata import checked_metadata, is_blank
from llmemory.validation.searches import checked_filters, checked_page
from llmemory.validation.values import (
    checked_document_ids,
    checked_identifier,
    checked_text,
    document_uuid,
)

SETTINGS = Settings()

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | storable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(storable, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(storable, json_values, max_size=4))
def test_json_passes_unchanged(metadata: dict[str, Any]) -> None:
    found = checked_metadata(metadata, Settings(max_metadata_bytes=10_000_000))
    assert found == metadata
    assert json.loads(json.dumps(found)) == metadata


@given(st.text(max_size=30))
def test_text_is_refused_or_unchanged(text: str) -> None:
    bad = is_blank(text) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
    if not bad:
        assert checked_text(text, "name") == text
        return
    with pytest.raises(ValidationError) as caught:
        checked_text(text, "name")
    assert caught.value.field == "name"


@pytest.mark.parametrize(
    "text", ["", " ", "\u00a0\u2003\n", "\u200b", "\ufeff", "\u200e \u2060", "\u3164", "\u2800"]
)
def test_what_cannot_be_seen_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(f"{text}.{text}")


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("German", "german"),
        (" ENGLISH ", "english"),
        ("de", "german"),
        ("pt_BR", "portuguese"),
        ("ZH-hans-CN", "chinese"),
    ],
)
def test_a_language_has_a_name_or_a_code_in_any_case(name: str, language: str) -> None:
    values = {"owner_id": "a", "document_name": "n", "content": "c", "language": name}
    assert checked_document(values, SETTINGS).language == language
    assert Settings(language=name).language == language


def test_whole_numbers_of_other_types_are_taken() -> None:
    page = checked_page(np.int64(2), np.uint8(3), SETTINGS)
    assert page == (2, 3)
    assert [type(number) for number in page] == [int, int]
    for number in (np.float64(2), np.bool_(True), True, "2"):
        with pytest.raises(ValidationError, match="integer"):
            checked_page(number, 0, SETTINGS)


@pytest.mark.parametrize("key", ["owner_id", "content"])
def test_a_missing_key_is_named(key: str) -> None:
    values = {"owner_id": "a", "document_name": "n", "content": "c"}
    del values[key]
    with pytest.raises(ValidationError, match=f"{key} is missing") as caught:
        checked_document(values, SETTINGS)
    assert caught.value.field == key


class Color(str, enum.Enum):  # noqa: UP042
    RED = "red"


class Name(str):
    pass


def test_subclasses_become_plain_values() -> None:
    document = checked_document(
        {
            "owner_id": Color.RED,
            "document_name": Name("name"),
            "content": Color.RED,
            "document_type": Name("email"),
            "additional_metadata": MappingProxyType({Name("k"): Color.RED, "n": Name("x")}),
        },
        SETTINGS,
    )
    assert document.owner_id == "red"
    assert document.content == "red"
    assert type(document.document_name) is str
    assert document.metadata == {"k": "red", "n": "x"}
    assert {type(value) for value in document.metadata.values()} == {str}


def test_a_mapping_and_a_model_are_checked_alike() -> None:
    values: dict[str, Any] = {
        "owner_id": 5,
        "document_name": "n",
        "content": "c",
        "external_id": uuid4(),
        "document_date": date(2025, 1, 31),
        "additional_metadata": {"a": Decimal("1.0")},
    }
    assert checked_document(values, SETTINGS) == checked_document(NewDocument(**values), SETTINGS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), (" a ", " a "), (0, "0"), (-5, "-5"), (10**100, "1" + "0" * 100),
     (UUID(int=5), "00000000-0000-0000-0000-000000000005"), ("x" * 512, "x" * 512)],
)  # fmt: skip
def test_identifiers(value: Any, expected: str) -> None:
    assert checked_identifier(value, "owner_id", SETTINGS) == expected


@pytest.mark.parametrize(
    "value",
    [True, 1.0, None, b"a", [], "", " ", "x" * 513, 10**513, 10**9999],
    ids=range(10),
)
def test_what_is_no_identifier(value: Any) -> None:
    with pytest.raises(ValidationError, match="owner_id"):
        checked_identifier(value, "owner_id", SETTINGS)


@pytest.mark.parametrize(
    ("given_", "first", "last"),
    [
        (date(2025, 1, 31), datetime(2025, 1, 31, tzinfo=UTC), "day"),
        ("2025-01-31", datetime(2025, 1, 31, tzinfo=UTC), "day"),
        ("20250131", datetime(2025, 1, 31, tzinfo=UTC), "day"),
        (datetime(2025, 1, 31, 9), datetime(2025, 1, 31, 9, tzinfo=UTC), None),
        ("2025-01-31T09:00:00Z", datetime(2025, 1, 31, 9, tzinfo=UTC), None),
        ("2025-01-31 09:00+09:00", datetime(2025, 1, 31, tzinfo=UTC), None),
        (
            datetime(2025, 1, 31, 9, tzinfo=timezone(timedelta(hours=9))),
            datetime(2025, 1, 31, tzinfo=UTC),
            None,
        ),
    ],
)
def test_moments(given_: Any, first: datetime, last: str | None) -> None:
    found = checked_filters(SETTINGS, date_from=given_, date_to=given_)
    assert found.date_from == first
    end = first + timedelta(days=1, microseconds=-1) if last else first
    assert found.date_to == end


def test_filters_know_when_they_are_empty() -> None:
    assert checked_filters(SETTINGS) == Filters()
    assert checked_filters(SETTINGS, metadata_filter={}).is_empty()
    assert not checked_filters(SETTINGS, metadata_filter={"a": None}).is_empty()
    assert not checked_filters(SETTINGS, document_type="email").is_empty()
    assert checked_filters(SETTINGS, document_type="Email").document_type is DocumentType.EMAIL


def test_pages_at_their_ends() -> None:
    assert checked_page(1, 0, SETTINGS) == (1, 0)
    assert checked_page(1000, 2**31, SETTINGS) == (1000, 2**31)


def test_ids_of_documents() -> None:
    wanted = uuid4()
    for value in (wanted, str(wanted), str(wanted).upper(), wanted.hex, f"{{{wanted}}}"):
        assert document_uuid(value) == wanted
    with pytest.raises(DocumentNotFoundError):
        document_uuid("x")
    assert checked_document_ids(None) is None
    assert checked_document_ids([]) == []
    assert checked_document_ids(("x", wanted)) == [wanted]


def test_errors_do_not_carry_what_was_refused() -> None:
    secret = "hunter2-secret"
    for change in (
        {"content": f"{secret}\0"},
        {"content": f"{secret}\ud800"},
        {"document_type": secret},
        {"language": secret},
        {"document_date": secret},
        {"additional_metadata": {secret: float("nan")}},
        {"additional_metadata": {"a": f"{secret}\ud800"}},
    ):
        with pytest.raises(ValidationError) as caught:
            checked_document(
                {"owner_id": "a", "document_name": "n", "content": "c", **change}, SETTINGS
            )
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in f"{error} {error!r}"
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_shared_and_wide_metadata_is_refused_before_it_explodes() -> None:
    value: Any = 1
    for _ in range(18):
        value = [value] * 10
    with pytest.raises(ValidationError, match="max_metadata"):
        checked_metadata({"a": value}, SETTINGS)
