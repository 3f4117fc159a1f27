"""Which scripts a local model can read, by the words that its vocabulary has of each."""

from __future__ import annotations

from collections.abc import Mapping

from llmemory.embedding.local_worker import script_of

__all__ = ["share_read"]

FEWEST_PIECES = 200
"""A vocabulary that has a script's letters alone has fewer: it was made for other languages."""

FEWEST_CHARACTERS = 2_000
"""Chinese is written with so many in daily use; those of English models have some hundreds."""


def share_read(text: str, pieces: Mapping[str, int]) -> float:
    """Return which share of the letters of `text` are of scripts that a model can read, 0 to 1.

    Args:
        text: Any text; 1 if it has no letters.
        pieces: How many words and pieces of words the model's vocabulary has of each script. 1 is
            returned for a vocabulary that has too few of all, such as one of bytes.
    """
    read = {script for script, count in pieces.items() if count >= _fewest(script)}
    letters = [letter for letter in text if letter.isalpha()]
    if not read or not letters:
        return 1.0
    return sum(script_of(letter) in read for letter in letters) / len(letters)


def _fewest(script: str) -> int:
    return FEWEST_CHARACTERS if script == "CJK" else FEWEST_PIECES
