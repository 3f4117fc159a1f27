from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemory.text.queries import LONGEST_SEARCH, Query, parsed_query


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("annual leave", Query("annual leave")),
        ('"annual leave"', Query("annual leave", (("annual leave",),), (), False)),
        ('"annual leave" policy', Query("annual leave policy", (("annual leave",),), ())),
        ("leave -parental", Query("leave", (), ("parental",))),
        ('leave -"parental leave"', Query("leave", (), ("parental leave",))),
        (
            '"annual leave" OR "sick leave"',
            Query("annual leave sick leave", (("annual leave", "sick leave"),), (), False),
        ),
        (
            '"annual leave" OR holiday',
            Query("annual leave holiday", (("annual leave", "holiday"),), (), False),
        ),
        ("leave OR holiday", Query("leave holiday")),
        (
            '"annual leave" OR -parental holiday',
            Query("annual leave holiday", (("annual leave",),), ("parental",)),
        ),
        (
            '"annual leave" OR -"sick leave" holiday',
            Query("annual leave holiday", (("annual leave",),), ("sick leave",)),
        ),
        (
            "\u201eannual leave\u201c -\u00absick leave\u00bb",
            Query("annual leave", (("annual leave",),), ("sick leave",), False),
        ),
        ('"annual"-leave', Query("annual -leave", (("annual",),))),
        ("OR leave", Query("leave")),
        ("leave OR", Query("leave")),
        ("black or white", Query("black or white")),
        ("at -5 degrees", Query("at -5 degrees")),
        ("well-known e-mail", Query("well-known e-mail")),
        ("a - b -- c", Query("a - b -- c")),
        ("-leave", Query("-leave")),
        ('-"annual leave"', Query('-"annual leave"')),
        ("it's \"unbalanced", Query("it's \"unbalanced")),
        ('"" leave', Query('"" leave')),
        ('" "', Query('" "')),
    ],
)
def test_a_query_is_read_as_a_web_search(text: str, expected: Query) -> None:
    assert parsed_query(text) == expected


def test_a_long_query_is_a_text_whose_signs_are_punctuation() -> None:
    short = " ".join(["word"] * (LONGEST_SEARCH - 2) + ['"two words"'])
    assert parsed_query(short).required == (("two words",),)
    long = f"{short} more"
    assert parsed_query(long) == Query(long)


@given(st.text(st.sampled_from('ab "-OR\n\t'), min_size=1))
def test_any_text_gives_a_query_that_asks_for_something(text: str) -> None:
    query = parsed_query(text)
    assert query.text.strip() or not text.strip()
    assert all(group for group in query.required)
    assert all(phrase.strip() for group in query.required for phrase in group)
    assert all(phrase.strip() for phrase in query.excluded)
