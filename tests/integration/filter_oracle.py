"""What filters mean, in plain Python, beside documents and filters to try them on.

Written from docs/filters.md and sharing nothing with the library.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

# -- the oracle -----------------------------------------------------------------------------------

MISSING = object()
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1) // MICROSECOND
ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"(?:(Z)|([+-])(\d\d)(?::?(\d\d)(?::?(\d\d))?)?)?)?",
    re.ASCII,
)
NUMBER = re.compile(r"-?\d+(\.\d+)?([Ee][+-]?\d{1,3})?", re.ASCII)


def matches(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Return whether stored metadata passes a filter."""
    for key, wanted in given.items():
        if key == "$and":
            passed = all(matches(metadata, part) for part in wanted)
        elif key == "$or":
            passed = any(matches(metadata, part) for part in wanted)
        elif key == "$not":
            passed = not matches(metadata, wanted)
        else:
            passed = fits(metadata.get(key, MISSING), wanted)
        if not passed:
            return False
    return True


def fits(value: Any, wanted: Any) -> bool:
    if not (isinstance(wanted, dict) and has_operators(wanted)):
        return equal(value, wanted)
    if next(iter(wanted)).startswith("$"):
        return all(compare(value, name, operand) for name, operand in wanted.items())
    inside = value if isinstance(value, dict) else {}
    return all(fits(inside.get(key, MISSING), inner) for key, inner in wanted.items())


def has_operators(wanted: Any) -> bool:
    return isinstance(wanted, dict) and any(
        key.startswith("$") or has_operators(inner) for key, inner in wanted.items()
    )


def compare(value: Any, name: str, operand: Any) -> bool:
    match name:
        case "$and":
            return all(fits(value, part) for part in operand)
        case "$or":
            return any(fits(value, part) for part in operand)
        case "$not":
            return not fits(value, operand)
        case "$eq":
            return equal(value, operand)
        case "$ne":
            return not equal(value, operand)
        case "$in":
            return any(equal(value, one) for one in operand)
        case "$nin":
            return not any(equal(value, one) for one in operand)
        case "$exists":
            return (value is not MISSING) is operand
        case "$contains":
            if isinstance(operand, dict) and isinstance(value, dict):
                return contains(value, stored(operand))
            wanted = operand if isinstance(operand, list) else [operand]
            return isinstance(value, list) and contains(value, stored(wanted))
    left, right = comparable(value, operand)
    if left is None:
        return False
    return bool(
        {"$gt": left > right, "$gte": left >= right, "$lt": left < right, "$lte": left <= right}[
            name
        ]
    )


def equal(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return value is MISSING or value is None
    if isinstance(wanted, Decimal | date):
        left, right = comparable(value, wanted)
        return left is not None and bool(left == right)
    return value is not MISSING and same(value, stored(wanted))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if is_number(left) and is_number(right):
        return exact(left) == exact(right)
    return type(left) is type(right) and left == right


def contains(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return all(key in left and contains(left[key], right[key]) for key in right)
    if isinstance(left, list) and isinstance(right, list):
        return all(any(contains(one, wanted) for one in left) for wanted in right)
    return not isinstance(right, dict | list) and same(left, right)


def comparable(value: Any, operand: Any) -> tuple[Any, Any]:
    """Return both as what they are compared as; None twice where they cannot be."""
    if isinstance(operand, datetime):
        moment = moment_of(value)
        return (None, None) if moment is None else (moment, since_start(operand))
    if isinstance(operand, date):
        moment = moment_of(value)
        day = (operand - date(1, 1, 1)).days
        return (None, None) if moment is None else (moment // DAY, day)
    if isinstance(operand, Decimal):
        if isinstance(value, str) and len(value) <= 1000 and NUMBER.fullmatch(value):
            return Decimal(value), operand
        return (exact(value), operand) if is_number(value) else (None, None)
    if is_number(operand):
        return (exact(value), exact(operand)) if is_number(value) else (None, None)
    return (value, operand) if isinstance(value, str) else (None, None)


def moment_of(value: Any) -> int | None:
    """Return a stored text as microseconds since the year 1, in UTC."""
    found = ISO.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, *offset = found.groups()
    zone = [int(part or 0) for part in offset]
    if zone[0] > 15 or zone[1] > 59 or zone[2] > 59:
        return None
    try:
        naive = datetime(*(int(part or 0) for part in (year, month, day, hour, minute, second)))
    except ValueError:
        return None
    micros = round(Decimal(f"0.{fraction or 0}") * 1_000_000)
    shift = timedelta(hours=zone[0], minutes=zone[1], seconds=zone[2]) // MICROSECOND
    return since_start(naive) + micros - (-shift if sign == "-" else shift)


def since_start(moment: datetime) -> int:
    offset = moment.utcoffset() or timedelta(0)
    return (moment.replace(tzinfo=None) - datetime(1, 1, 1)) // MICROSECOND - offset // MICROSECOND


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(value: Any) -> Decimal:
    return Decimal(repr(value))


def stored(value: Any) -> Any:
    """Return a value in the form in which it is stored."""
    if isinstance(value, dict):
        return {key: stored(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [stored(inner) for inner in value]
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


# -- what it is tried on --------------------------------------------------------------------------

KEYS = ["a", "b", "c", "a.b", "0", "", "it's", 'q"', "b\\", "%s", ":x", "🙂", "k$", "{a,b}"]
TOKYO = timezone(timedelta(hours=9))
MOMENTS: list[Any] = [
    datetime(2025, 1, 31),
    datetime(2025, 1, 31, 12, tzinfo=UTC),
    datetime(2025, 2, 1, 0, 0, 0, 1, tzinfo=TOKYO),
    datetime(2025, 1, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-23, minutes=-59))),
    datetime.min,
    datetime.max,
    datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=53, seconds=28))),
]
DAYS: list[Any] = [date(2025, 1, 31), date(2024, 2, 29), date(2025, 2, 1), date.min, date.max]
NUMBERS: list[Any] = [0, 1, -1, 1.0, 1.5, 0.1, -0.0, 2**70, 1e300, 5e-324, 12345678901234567890]
DECIMALS: list[Any] = [Decimal(text) for text in ("1", "1.50", "-0.0", "1E+20", "0.1", "1e-400")]
TEXTS: list[Any] = [
    *("", "a", "A", "b", "ab", "ä", "ü🙂", "\U0010ffff", "\uffff", "1", "1.5", "1.50", "1e20"),
    *("-0", "+1", "01", "1.", ".5", "NaN", "Infinity", "1e9999", "9" * 2000, "true", "null", "{}"),
    *("'", '"', "\\", "%", "$eq", "$1", ":name", "a'; --", "\n", " ", "[1]", "today", "infinity"),
    *("2025-01-31", "2025-01-31T12:00", "2025-01-31 12:00Z", "2025-01-31T12:00:00.000001+00:00"),
    *("2025-02-01T09:00+09:00", "2025-01-31T23:59:59.999999Z", "2025-01-31T12:00:00.123456789-15"),
    *("2024-02-29", "2024-02-29T00:00:01+05:53:28", "2000-02-29", "0001-01-01T00:00:00+15:59"),
    *("9999-12-31T23:59:59.999999-15:59", "2025-02-01T00:00:00.000001+0900"),
    *("2025-02-29", "1900-02-29", "2025-04-31", "2025-13-01", "2025-00-10", "0000-01-01"),
    *("2025-01-31T24:00", "2025-01-31T12:60", "2025-01-31T12:00:60", "2025-01-31T12", "20250131"),
    *("2025-01-31T12:00+16", "2025-01-31T12:00+09:60", "2025-01-31Z", "2025-01-31 ", "2025-1-31"),
    *("2025-01-31T12:00:00.", "2025-01-31T12:00:00.1234567890", "2025-01-31\n", "2025-01-3\u0661"),
    *("12025-01-31", "-2025-01-31", "2025-01-31t12:00z", "2025-01-31T12:00 +09", "31.01.2025"),
]
SCALARS: list[Any] = [None, True, False, *NUMBERS, *TEXTS]


def documents(count: int, seed: int) -> list[dict[str, Any]]:
    """Return metadata as it is given to ``add_documents``."""
    chosen = random.Random(seed)

    def value(depth: int) -> Any:
        kind = chosen.random()
        if depth and kind < 0.15:
            return [value(depth - 1) for _ in range(chosen.randrange(4))]
        if depth and kind < 0.3:
            return metadata(depth - 1)
        if kind < 0.4:
            return chosen.choice([*MOMENTS, *DAYS, *DECIMALS])
        pool = chosen.choice([SCALARS, TEXTS, NUMBERS, [None, True, False, "a", 1]])
        return chosen.choice(pool)

    def metadata(depth: int) -> dict[str, Any]:
        keys = KEYS[:4] if chosen.random() < 0.8 else KEYS
        return {key: value(depth) for key in chosen.sample(keys, chosen.randrange(4))}

    return [metadata(3) for _ in range(count)]


KEY = (
    st.sampled_from(KEYS[:4])
    | st.sampled_from(KEYS)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5).filter(
        lambda key: not key.startswith("$")
    )
)
SCALAR = (
    st.sampled_from(SCALARS)
    | st.sampled_from([None, True, False, "a", 1])
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
)
WHEN = (
    st.sampled_from([*MOMENTS, *DAYS])
    | st.datetimes(timezones=st.sampled_from([None, UTC, TOKYO]))
    | st.dates()
)
AMOUNT = st.sampled_from(DECIMALS) | st.decimals(
    allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=6
)
VALUE = st.recursive(
    SCALAR | WHEN | AMOUNT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=4,
)
ORDERED = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WHEN
    | AMOUNT
)


def operators(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects of one or two operators, `inner` being what $and, $or and $not join."""
    operands: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("$eq", "$ne", "$contains"), VALUE),
        **dict.fromkeys(("$in", "$nin"), st.lists(VALUE, max_size=4)),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ORDERED),
        "$exists": st.booleans(),
        **dict.fromkeys(("$and", "$or"), st.lists(inner, min_size=1, max_size=3)),
        "$not": inner,
    }
    one = st.sampled_from(sorted(operands)).flatmap(
        lambda name: st.fixed_dictionaries({name: operands[name]})
    )
    return one | st.tuples(one, one).map(lambda pair: pair[0] | pair[1])


SIMPLE = st.sampled_from([{"$exists": True}, {"$eq": "a"}, {"$gt": 0}, {"$ne": None}])
TESTS = operators(operators(SIMPLE))
CONDITION = st.recursive(
    TESTS | VALUE, lambda inner: st.dictionaries(KEY, inner, min_size=1, max_size=2), max_leaves=3
)
FILTERS = st.recursive(
    st.dictionaries(KEY, CONDITION, max_size=3),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([{"$and": parts}, {"$or": parts}, {"$not": parts[0]}])
    ),
    max_leaves=5,
)
