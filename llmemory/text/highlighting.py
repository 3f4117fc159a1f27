"""Marking words in a text that becomes HTML. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from html import escape

__all__ = ["UNSPACED", "highlighted"]

UNSPACED = (
    r"\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u4DBF"
    r"\u4E00-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF"
)
"""Characters of scripts that put no spaces between words, for a class of a regular expression."""

_LETTER = rf"[^\W_{UNSPACED}]"
_RUN = re.compile(f"[{UNSPACED}]+")


def highlighted(content: str, words: Collection[str], query: str) -> str:
    """Return `content` as HTML with the words of a query in ``<mark>``; it holds no other tags.

    Args:
        content: Any text.
        words: What to mark, as it is written there, where no letter or digit precedes or follows.
        query: Of scripts without spaces, any two characters that it has in a row are marked.
    """
    parts = []
    end = 0
    for start, stop in _merged(sorted([*_spans_of_words(content, words), *_pairs(content, query)])):
        parts += [escape(content[end:start]), "<mark>", escape(content[start:stop]), "</mark>"]
        end = stop
    return "".join([*parts, escape(content[end:])])


def _spans_of_words(content: str, words: Collection[str]) -> Iterator[tuple[int, int]]:
    if words:
        longest_first = sorted(words, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        for match in re.finditer(f"(?<!{_LETTER})(?:{pattern})(?!{_LETTER})", content):
            yield match.span()


def _pairs(content: str, query: str) -> Iterator[tuple[int, int]]:
    runs = _RUN.findall(query)
    wanted = {run[at : at + 2] for run in runs for at in range(max(1, len(run) - 1))}
    if not wanted:
        return
    for match in _RUN.finditer(content):
        run = match.group()
        for at in range(max(1, len(run) - 1)):
            if (pair := run[at : at + 2]) in wanted:
                yield match.start() + at, match.start() + at + len(pair)


def _merged(spans: Collection[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield sorted spans, those that overlap as one."""
    start = end = 0
    for first, last in spans:
        if first >= end:
            if end:
                yield start, end
            start = first
        end = max(end, last)
    if end:
        yield start, end
