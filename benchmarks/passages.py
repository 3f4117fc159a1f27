"""Passages to measure with: a collection in BEIR layout, or synthetic text."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path


def passages(folder: Path | None, count: int) -> list[str]:
    """Return `count` passages: of ``folder/corpus.jsonl``, repeated as needed, or synthetic."""
    if folder is None:
        return _synthetic(count)
    with (folder / "corpus.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, count)]
    texts = [f"{row.get('title') or ''}\n\n{row['text']}".strip() for row in rows]
    texts = [text for text in texts if text]
    return [texts[number % len(texts)] for number in range(count)]


def _synthetic(count: int) -> list[str]:
    # Zipf's law, as words of a language follow it.
    generator = random.Random(7)
    words = [f"w{number}" for number in range(20_000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(generator.choices(words, weights, k=150)) for _ in range(count)]
