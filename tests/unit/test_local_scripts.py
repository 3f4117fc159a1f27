"""Which share of a query a local model can read."""

from __future__ import annotations

import pytest

from llmemory.embedding.local_scripts import share_read

ENGLISH = {"LATIN": 27_762, "CJK": 488, "HIRAGANA": 92, "CYRILLIC": 86, "ARABIC": 86}
MANY = {"LATIN": 60_000, "CYRILLIC": 13_000, "CJK": 8_000, "KATAKANA": 1_300, "THAI": 370}


@pytest.mark.parametrize(
    ("text", "of_english", "of_many"),
    [
        ("Où est la clé?", 1, 1),
        ("Где ключ?", 0, 1),
        ("ключ key", 3 / 7, 1),
        ("钥匙在哪里", 0, 1),
        ("サーバー", 0, 1),
        ("佐々木", 0, 1),
        ("ﾃﾞｰﾀ", 0, 1),
        ("हिन्दी", 0, 0),
        ("5 kΩ, 3 µm of \uff50\uff41\uff59", 1, 1),
        ("ที่ไหน", 0, 1),
        ("مفتاح", 0, 0),
        ("2024 / 7 🙂", 1, 1),
        ("", 1, 1),
    ],
)
def test_share_read(text: str, of_english: float, of_many: float) -> None:
    assert share_read(text, ENGLISH) == pytest.approx(of_english)
    assert share_read(text, MANY) == pytest.approx(of_many)


def test_a_vocabulary_that_says_nothing() -> None:
    assert share_read("Где ключ?", {}) == 1
    assert share_read("Где ключ?", {"LATIN": 52, "CYRILLIC": 66}) == 1
