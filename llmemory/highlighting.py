"""Marking words in a text that becomes HTML. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from html import escape

__all__ = ["highlighted"]

_LETTER = r"[^\W_]"


def highlighted(content: str, words: Collection[str]) -> str:
    """Return `content` as HTML with `words` in ``<mark>``; nothing else in it is a tag.

    Args:
        content: Any text.
        words: What to mark, as it is written there, where no letter or digit precedes or follows.
    """
    if not words:
        return escape(content)
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    # With a group, what is found stands between what is not.
    parts = re.split(f"(?<!{_LETTER})({pattern})(?!{_LETTER})", content)
    return "".join(
        f"<mark>{escape(part)}</mark>" if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )
