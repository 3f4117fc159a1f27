"""Highlights: every character of the text is there, and no tag but ours."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemory.text.highlighting import highlighted

TEXT = st.text(st.sampled_from("ab <>&\"'/_-🙂mark;0\n") | st.characters(codec="utf-8"))
WORDS = st.lists(st.text(st.sampled_from("ab<>&mark.*()[]\\"), min_size=1, max_size=5), max_size=4)


@given(TEXT, WORDS)
def test_the_text_is_whole_and_escaped(content: str, words: list[str]) -> None:
    found = highlighted(content, words, "".join(words) + content[3:9])
    without = re.sub("<mark>(.*?)</mark>", r"\1", found, flags=re.DOTALL)
    assert without == html.escape(content)


@pytest.mark.parametrize(
    ("content", "words", "expected"),
    [
        ("Leave", [], "Leave"),
        ("a <b>", ["b"], "a &lt;<mark>b</mark>&gt;"),
        ("sickleave leave leaves", ["leave"], "sickleave <mark>leave</mark> leaves"),
        ("snake_case", ["case"], "snake_<mark>case</mark>"),
        ("foo-bar foo", ["foo", "foo-bar"], "<mark>foo-bar</mark> <mark>foo</mark>"),
        ("a.c abc", ["a.c"], "<mark>a.c</mark> abc"),
        ("&amp; amp", ["amp"], "&amp;<mark>amp</mark>; <mark>amp</mark>"),
        ("</mark><script>", ["mark"], "&lt;/<mark>mark</mark>&gt;&lt;script&gt;"),
    ],
)
def test_what_is_marked(content: str, words: list[str], expected: str) -> None:
    assert highlighted(content, words, "no such") == expected


@pytest.mark.parametrize(
    ("content", "query", "expected"),
    [
        ("東京都に住む", "東京", "<mark>東京</mark>都に住む"),
        ("東京都に住む", "東京都", "<mark>東京都</mark>に住む"),
        ("東京都に住む", "京都", "東<mark>京都</mark>に住む"),
        ("<東京>東 京", "東", "&lt;東京&gt;<mark>東</mark> 京"),
        ("สวัสดี leave", "สวัสดี", "<mark>สวัสดี</mark> leave"),
        ("東京 leave", "leave", "東京 leave"),
    ],
)
def test_scripts_without_spaces(content: str, query: str, expected: str) -> None:
    assert highlighted(content, [], query) == expected
