"""Which scripts a local model can read, by the words that its vocabulary has of each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from unicodedata import category, normalize

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
    known = letters = 0
    # Marks, such as vowels of Hindi, stand between letters, and so do some that lengthen them.
    spelled = (sign for sign in normalize("NFKC", text) if category(sign) not in _WITHIN_WORDS)
    for script, word in groupby(spelled, _script):
        if script is not None:
            count = len(list(word))
            letters += count
            # A letter by itself, as in 5 kΩ, is in the vocabulary of most models.
            known += count if count == 1 or script in read else 0
    return known / letters if read and letters else 1.0


_WITHIN_WORDS = frozenset({"Lm", "Mc", "Me", "Mn"})


def _script(sign: str) -> str | None:
    return script_of(sign) if sign.isalpha() else None


def _fewest(script: str) -> int:
    return FEWEST_CHARACTERS if script == "CJK" else FEWEST_PIECES
