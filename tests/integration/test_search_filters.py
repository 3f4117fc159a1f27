"""Searching with filters: metadata, types, origins and dates, in pages as long as was asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from integration.helpers import fetch
from integration.searches import TYPES, fill, names
from plugins.memories import MakeMemory

from llmemory import (
    AsyncMemory,
    DocumentType,
    SearchType,
)

pytestmark = pytest.mark.anyio

VALUES: dict[str, Any] = {
    "text": "a",
    "empty": "",
    "digits": "1",
    "one": 1,
    "true": True,
    "false": False,
    "zero": 0,
    "half": 0.5,
    "large": 2**70,
    "list": ["a", "b"],
    "reversed": ["b", "a"],
    "short": ["a"],
    "none-in-list": [None],
    "empty-list": [],
    "object": {"a": 1, "b": [2]},
    "smaller": {"a": 1},
    "empty-object": {},
    "null": None,
    "unicode": "ü🙂",
    "quotes": "'\"\\",
    "date": date(2025, 1, 31),
    "decimal": Decimal("1.50"),
    "operator": "$eq",
}


@TYPES
async def test_metadata_filters_are_equality(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url)
    await fill(
        memory,
        missing={},
        **{name: {"additional_metadata": {"key": value}} for name, value in VALUES.items()},
    )
    for name, value in VALUES.items():
        found = await names(
            memory, search_type=search_type, metadata_filter={"key": value}, limit=100
        )
        assert sorted(found) == (["missing", "null"] if value is None else [name])
    listed = await memory.list_documents("acme", metadata_filter={"key": 1.0})
    assert [document.document_name for document in listed.documents] == ["one"]


KEYS = [
    "plain",
    "",
    " ",
    "with space",
    "quote'",
    'double"',
    "back\\slash",
    "per%cent %s %(x)s",
    "dollar$1",
    "what?",
    "what??",
    ":name",
    "a::text",
    "{a,b}",
    "$.a",
    "a.b",
    "0",
    "-1",
    "ключ",
    "🙂",
    "'; DROP TABLE llmemory.documents; --",
    "k" * 10_000,
    "\ue000\uffff",
    "line\nbreak\x01\x7f",
]


async def test_hostile_metadata_keys_and_values(make_memory: MakeMemory, driver_url: str) -> None:
    memory = make_memory(driver_url)
    shapes: list[Callable[[str], dict[str, Any]]] = [
        lambda text: {text if text[:1] != "$" else f"k{text}": text},
        lambda text: {f"l{text}": [text]},
        lambda text: {f"o{text}": {text if text[:1] != "$" else f"k{text}": text}},
    ]
    for number, text in enumerate(KEYS):
        metadata: dict[str, Any] = {}
        for shape in shapes:
            metadata |= shape(text)
        await memory.add_document(
            "acme", str(number), "Leave of absence.", additional_metadata=metadata
        )
    for number, text in enumerate(KEYS):
        for shape in shapes:
            filtered = shape(text)
            assert await names(memory, metadata_filter=filtered, limit=100) == [str(number)]
            assert [
                document.document_name
                for document in (
                    await memory.list_documents("acme", metadata_filter=filtered)
                ).documents
            ] == [str(number)]
            key = next(iter(filtered))
            missing = await names(memory, metadata_filter={key: None}, limit=100)
            assert str(number) not in missing
            assert len(missing) == len(KEYS) - 1
    everything = {"plain": "plain", "lplain": ["plain"], "no": None, "nor": None}
    assert await names(memory, metadata_filter=everything) == ["0"]
    assert await names(memory, metadata_filter={**everything, "lplain": []}) == []


@TYPES
async def test_type_and_origin_filters(memory: AsyncMemory, search_type: SearchType) -> None:
    await fill(
        memory,
        email={"document_type": "email", "id_at_origin": "ann"},
        report={"document_type": "REPORT", "id_at_origin": 5},
        other={"id_at_origin": "ann@example.com"},
    )
    for arguments, expected in (
        ({"document_type": "email"}, ["email"]),
        ({"document_type": DocumentType.REPORT}, ["report"]),
        ({"document_type": "business_report"}, []),
        ({"id_at_origin": "ann"}, ["email"]),
        ({"id_at_origin": 5}, ["report"]),
        ({"id_at_origin": "an%"}, []),
        ({"document_type": "email", "id_at_origin": 5}, []),
        ({"document_type": "email", "id_at_origin": "ann", "metadata_filter": {"x": None}},
         ["email"]),
    ):  # fmt: skip
        assert await names(memory, search_type=search_type, **arguments) == expected


@TYPES
async def test_date_filters(
    make_memory: MakeMemory, driver_url: str, search_type: SearchType
) -> None:
    memory = make_memory(driver_url)
    tokyo = timezone(timedelta(hours=9))
    await fill(
        memory,
        undated={},
        day={"document_date": date(2025, 1, 31)},
        noon={"document_date": datetime(2025, 1, 31, 12)},
        evening={"document_date": "2025-01-31T23:59:59.999999Z"},
        tokyo={"document_date": datetime(2025, 2, 1, 8, tzinfo=tokyo)},
        february={"document_date": "2025-02-01"},
        old={"document_date": "0001-01-03"},
        future={"document_date": "9999-12-29T23:59:59"},
    )
    january = {"day", "noon", "evening", "tokyo"}
    for arguments, expected in (
        ({"date_from": "2025-01-31", "date_to": "2025-01-31"}, january),
        ({"date_from": date(2025, 1, 31), "date_to": date(2025, 1, 31)}, january),
        ({"date_from": "2025-W05-5", "date_to": "2025-W05-5"}, january),
        ({"date_from": datetime(2025, 1, 31, 12), "date_to": "2025-01-31T12:00"}, {"noon"}),
        (
            {"date_from": datetime(2025, 1, 31, 21, tzinfo=tokyo), "date_to": "2025-01-31T12:00Z"},
            {"noon"},
        ),
        ({"date_from": "2025-01-31T13:00"}, {"evening", "tokyo", "february", "future"}),
        ({"date_to": "2025-01-31"}, january | {"old"}),
        ({"date_to": date.max}, january | {"old", "february", "future"}),
        ({"date_from": date.min}, january | {"old", "february", "future"}),
        ({"date_from": "2025-02-01T00:00:00.000001", "date_to": "2026-01-01"}, set()),
    ):
        assert set(await names(memory, search_type=search_type, **arguments)) == expected
    assert len(await names(memory, search_type=search_type)) == 8


@pytest.mark.parametrize("day", ["20250131", "2025W055", date(2025, 1, 31), "2025-01-31"])
async def test_a_day_is_a_day_however_it_is_written(memory: AsyncMemory, day: Any) -> None:
    await fill(memory, a={"document_date": "2025-01-31T15:00"})
    assert await names(memory, date_from=day, date_to=day) == ["a"]


@pytest.fixture
async def large(make_memory: MakeMemory, driver_url: str) -> AsyncMemory:
    """One owner with 400 passages that match "leave", among 300 of others that do not."""
    memory = make_memory(driver_url)
    chosen = random.Random(5)
    words = [f"word{number}" for number in range(200)]
    await memory.add_documents(
        {
            "owner_id": "acme" if number < 600 else "other",
            "document_name": str(number),
            "content": ("Leave " if number < 400 else "")
            + " ".join(chosen.choices(words, k=chosen.randrange(5, 40))),
            "document_type": "email" if number % 2 else "report",
            "additional_metadata": {"rare": number % 200 == 0, "third": number % 3},
        }
        for number in range(700)
    )
    fetch(driver_url, "ANALYZE")
    return memory


async def test_never_fewer_than_limit(large: AsyncMemory) -> None:
    for search_type in SearchType:
        for limit in (1, 10, 99, 100, 101, 200):
            for filters, matching in (
                ({}, 400),
                ({"document_type": "email"}, 200),
                ({"metadata_filter": {"third": 1}}, 133),
                ({"metadata_filter": {"rare": True}}, 2),
                ({"metadata_filter": {"rare": True}, "document_type": "email"}, 0),
            ):
                found = await large.search(
                    "acme", "leave", search_type=search_type, limit=limit, **filters
                )
                assert len(found) == min(
                    limit,
                    matching if search_type is SearchType.TEXT else max(matching, len(found)),
                )
                assert len({hit.chunk_id for hit in found}) == len(found)
                scores = [hit.score for hit in found]
                assert scores == sorted(scores, reverse=True)
                assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("search_type", list(SearchType))
@pytest.mark.parametrize("size", [7, 100, 130])
async def test_pages_join_without_gap_or_repetition(
    large: AsyncMemory, search_type: SearchType, size: int
) -> None:
    query = "leave word7 word8"
    total = len(await large.search("acme", query, search_type=search_type, limit=1000))
    assert total >= 400
    paged: list[str] = []
    for offset in range(0, total, size):
        page = await large.search("acme", query, search_type=search_type, limit=size, offset=offset)
        assert len(page) == min(size, total - offset)
        paged += [hit.chunk_id for hit in page]
    assert len(set(paged)) == total


@TYPES
async def test_a_search_is_one_statement(
    make_memory: MakeMemory,
    driver_url: str,
    statements: Callable[[AsyncMemory], Any],
    search_type: SearchType,
) -> None:
    memory = make_memory(driver_url)
    await fill(memory, a={"additional_metadata": {"a": [1]}, "document_date": "2025-01-31"})
    with statements(memory) as sent:
        await memory.search("acme", "leave", search_type=search_type)
        assert len(sent) == 1
        await memory.search_with_documents(
            "acme",
            "leave",
            search_type=search_type,
            metadata_filter={"a": [1], "b": None},
            document_type="general",
            date_from="2025-01-01",
        )
        assert len(sent) == 2
        await memory.search(
            "acme",
            "leave",
            search_type=search_type,
            metadata_filter={"$or": [{"secret": {"$gt": "acme"}}, {"a": {"$contains": 1}}]},
            min_score=0,
            context_window=3,
            highlight=True,
        )
        assert len(sent) == 3
        for owner_id, filters in (("nobody", {}), ("acme", {"document_type": "email"})):
            found = await memory.search(owner_id, "leave", search_type=search_type, **filters)
            assert found == []
        assert len(sent) == 5
    assert "acme" not in " ".join(sent)
    assert "leave" not in " ".join(sent)
    assert "secret" not in " ".join(sent)
    for asked in ("hits_of_any_score", "neighbours", "matched_words"):
        assert asked not in sent[1]
        assert asked in sent[2]


async def test_a_server_in_another_time_zone(make_memory: MakeMemory, driver_url: str) -> None:
    name = urlsplit(driver_url).path[1:]
    fetch(driver_url, f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'")
    memory = make_memory(driver_url)
    moments = ["0001-01-03", "2025-01-31T12:00", "9999-12-29T23:59:59.999999"]
    await fill(memory, **{moment: {"document_date": moment} for moment in moments})
    listed = await memory.list_documents("acme")
    for document in listed.documents:
        assert document.document_date == datetime.fromisoformat(document.document_name).replace(
            tzinfo=UTC
        )
    assert len(await names(memory)) == 3
