"""Reading filters: what is refused, and that values are no part of a shape."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from llmemory import Settings, ValidationError
from llmemory.models import tables_for
from llmemory.statements.filters import FilterShape, conditions, parameters, shape_of
from llmemory.validation.filters import (
    EVERYTHING,
    NOTHING,
    Condition,
    Filters,
    Group,
    MetadataFilter,
)
from llmemory.validation.metadata_filters import OPERATORS, checked_metadata_filter
from llmemory.validation.searches import checked_filters

SETTINGS = Settings()


def read(given: object) -> MetadataFilter:
    return checked_metadata_filter(given, SETTINGS)


def nested(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = {"$and": [inner]}
    return inner


REFUSED: list[tuple[Any, str]] = [
    ([], "must be a mapping"),
    ({"$where": "1 = 1"}, "unknown operator"),
    ({"a": {"$regex": "x"}}, "unknown operator"),
    ({"a": {"$EQ": 1}}, "unknown operator"),
    ({"a": {"$": 1}}, "unknown operator"),
    ({"a": {"b": {"c": {"$like": "x"}}}}, "unknown operator"),
    ({"$or": [{"a": 1}, {"$nor": []}]}, "unknown operator"),
    ({"$gt": 5}, "in the place of a key"),
    ({"$eq": {"a": 1}}, "in the place of a key"),
    ({"a": {"$gt": 1, "b": 2}}, "mixes operators and keys"),
    ({"a": [{"$eq": 1}]}, "within a list"),
    ({"a": {"b": [{"c": {"$eq": 1}}]}}, "within a list"),
    ({"$and": []}, "one or more objects for \\$and"),
    ({"$or": {}}, "one or more objects for \\$or"),
    ({"$or": [1]}, "one or more objects for \\$or"),
    ({"$or": "ab"}, "one or more objects for \\$or"),
    ({"$not": []}, "an object for \\$not"),
    ({"a": {"$not": 5}}, "an object for \\$not"),
    ({"a": {"$not": {"b": 5}}}, "objects of operators"),
    ({"a": {"$or": [{"$eq": 1}, {}]}}, "objects of operators"),
    ({"a": {"$and": [1]}}, "one or more objects for \\$and"),
    ({"a": {"$in": "abc"}}, "list of values for \\$in"),
    ({"a": {"$nin": {"b": 1}}}, "list of values for \\$nin"),
    ({"a": {"$in": None}}, "list of values for \\$in"),
    ({"a": {"$exists": 1}}, "True or False"),
    ({"a": {"$exists": "false"}}, "True or False"),
    ({"a": {"$gt": None}}, "for \\$gt"),
    ({"a": {"$gte": True}}, "for \\$gte"),
    ({"a": {"$lt": [1]}}, "for \\$lt"),
    ({"a": {"$lte": {"b": 1}}}, "for \\$lte"),
    ({"a": {"$gt": float("inf")}}, "finite"),
    ({"a": {"$gt": Decimal("sNaN")}}, "finite"),
    ({"a": {"$gt": Decimal("1E+401")}}, "400 digits"),
    ({"a": Decimal("1." + "1" * 400)}, "400 digits"),
    ({"a": {"$in": [Decimal("0E-99999")]}}, "400 digits"),
    ({"a": {"$eq": 10**400}}, "400 digits"),
    ({"a": {"$eq": "\0"}}, "NUL"),
    ({"a": {"$in": ["\ud800"]}}, "surrogate"),
    ({"a": {"$contains": {"\ud800": 1}}}, "surrogate"),
    ({"a": {"$eq": object()}}, "type object"),
    ({"a": {"$in": {1, 2}}}, "type set"),
    ({"a": {"$in": list(range(60_000))}}, "max_metadata_bytes"),
    ({"a": {"$eq": "x" * 1_000_000}}, "max_metadata_bytes"),
    ({"x" * 1_000_000: 1}, "max_metadata_bytes"),
    (nested(10, {"a": 1}), "max_metadata_depth"),
    (nested(200, {"a": 1}), "max_metadata_depth"),
    (nested(50_000, {"a": 1}), "max_metadata_depth"),
    ({"$or": [{"a": number} for number in range(51)]}, "51 conditions, more than max_filter"),
    ({str(number): number for number in range(51)}, "many values of one key are one \\$in"),
]


@pytest.mark.parametrize(("given", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        read(given)
    assert caught.value.field == "metadata_filter"
    assert len(str(caught.value)) < 300


def test_an_unknown_operator_is_told_the_known_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        read({"a": {"$regex": "secret"}})
    assert all(name in str(caught.value) for name in OPERATORS)
    assert "secret" not in str(caught.value)


def test_values_and_keys_are_no_part_of_a_shape() -> None:
    def shape(key: str, number: float, text: str, when: datetime) -> FilterShape:
        metadata = read(
            {
                key: {"$gt": number, "$in": [text, number]},
                "$or": [{key: {"$lt": when}}, {key: {"$not": {"$contains": text}}}],
            }
        )
        return shape_of(Filters(metadata=metadata))

    first = shape("a", 1, "x", datetime(2025, 1, 1))
    second = shape("'; --", 2.5, "%s $1 :x", datetime.now(UTC))
    assert first == second
    assert hash(first) == hash(second)
    assert "'; --" not in repr(second)


def test_every_parameter_is_bound_to_its_own_condition() -> None:
    metadata = read({"a": {"b": {"$gt": 1}}, "$or": [{"c": "x"}, {"d": {"$exists": True}}]})
    assert metadata.shape == Group(
        "and",
        (
            Condition(">", "number", depth=2),
            Group("or", (Condition("holds"), Condition("exists", depth=1))),
        ),
    )
    assert parameters(Filters(metadata=metadata), 'the "owner"') == {
        "filter_0_key_0": "a",
        "filter_0_key_1": "b",
        "filter_0": "1",
        "filter_1": '{"c": "x"}',
        "filter_1_owned": r'{"the \"owner\"": {"c": "x"}}',
        "filter_2_key_0": "d",
    }


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"$and": [{}]},
        {"$and": [{}, {"$and": [{}]}]},
        {"$or": [{"a": 1}, {}]},
        {"a": {"$nin": []}},
        {"$not": {"a": {"$in": []}}},
    ],
)
def test_what_leaves_everything_is_empty(given: Any) -> None:
    # delete_documents relies on it.
    assert read(given) == EVERYTHING
    assert Filters(metadata=read(given)).is_empty()


@pytest.mark.parametrize(
    "given", [{"a": {"$in": []}}, {"$not": {}}, {"b": 1, "a": {"$in": []}}, {"$or": [{"$not": {}}]}]
)
def test_what_leaves_nothing(given: Any) -> None:
    assert read(given) == NOTHING
    assert not Filters(metadata=read(given)).is_empty()


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"a": 1, "b": 'x"}'}, ['{"a": 1, "b": "x\\"}"}']),
        ({"b": {"c": {"$eq": 1}, "d": {"$eq": 2}}}, ['{"b": {"c": 1}}', '{"b": {"d": 2}}']),
        ({"$and": [{"a": 1}, {"a": 2}]}, ['{"a": 1}', '{"a": 2}']),
        (
            {"$and": [{"a": 1, "b": 2}, {"c": 3, "b": 4}, {"$and": [{"d": 5}]}]},
            ['{"a": 1, "b": 2, "c": 3, "d": 5}', '{"b": 4}'],
        ),
        ({"$or": [{"a": 1, "b": 2}], "b": 3}, ['{"a": 1, "b": 2}', '{"b": 3}']),
        (
            {"$or": [{"a": 1, "b": 2}, {"b": 3}], "b": 4},
            ['{"b": 4}', '{"a": 1, "b": 2}', '{"b": 3}'],
        ),
        ({"$not": {"a": 1, "b": 2}, "c": 3}, ['{"c": 3}', '{"a": 1, "b": 2}']),
    ],
)
def test_values_of_several_keys_are_asked_at_once(given: Any, held: list[str]) -> None:
    assert sorted(str(operand.value) for operand in read(given).operands) == sorted(held)


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({"a": 1}, 1),
        ({"a": 1, "b": 2, "$and": [{"c": 3}]}, 1),
        ({"a": 1, "b": {"$gt": 2}}, 1),
        ({"$or": [{"a": 1}, {"a": 2, "b": {"$gt": 2}}]}, 2),
        ({"$or": [{"a": 1}, {"b": {"$gt": 2}}]}, 0),
        ({"$or": [{"a": 1}, {"$and": [{"a": 2}, {"b": 3}]}, {"b": {"$exists": True}}]}, 0),
        ({"$not": {"a": 1}, "b": {"$contains": "x"}}, 1),
    ],
)
def test_metadata_are_asked_below_their_owner_where_that_finds_what_may_pass(
    given: Any, times: int
) -> None:
    shape = shape_of(Filters(metadata=read(given)))
    (asked,) = conditions(tables_for("llmemory").documents, shape)
    assert str(asked).count("jsonb_set") == times


def test_moments_are_bound_in_utc() -> None:
    far = timezone(timedelta(hours=-23, minutes=-59))
    for given, bound in (
        (datetime(2025, 1, 31, 9), "2025-01-31T09:00:00+00:00"),
        (datetime(2025, 1, 31, 0, 1, tzinfo=far), "2025-02-01T00:00:00+00:00"),
        (datetime.max.replace(tzinfo=far), "9999-12-31T23:59:59.999999+00:00"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=9))), "0001-01-01T00:00:00+00:00"),
        (date(1, 1, 1), "0001-01-01"),
    ):
        (operand,) = read({"a": {"$gt": given}}).operands
        assert operand.value == bound


def test_roles_from_whom_rows_are_hidden_are_not_asked_as_the_index_has_it() -> None:
    settings = Settings(row_level_security=True)
    filters = checked_filters(settings, metadata_filter={"a": 1})
    (asked,) = conditions(tables_for("llmemory").documents, shape_of(filters))
    assert "jsonb_set" not in str(asked)
    assert checked_filters(settings).is_empty()
    assert shape_of(checked_filters(settings)).is_empty()
