"""What OpenAIEmbedder sends and reads: batches of texts, and answers to them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from plugins.openai_server import packed

from llmemory.embedding import openai_messages as messages
from llmemory.embedding.openai_messages import Pieces, Setback, batches, decode, estimated_tokens
from llmemory.errors import (
    DimensionMismatch,
    EmbeddingError,
)


class TestAnswers:
    def test_vectors_are_sorted_by_index(self) -> None:
        items = [(1, [3.0, 4.0]), (0, [1.0, 2.0])]
        answer = decode(body_of(items), count=2, dimensions=2)
        assert answer.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]

    @pytest.mark.parametrize(
        "items",
        [
            [],
            [(0, [1.0, 2.0])],
            [(0, [1.0, 2.0]), (0, [1.0, 2.0])],
            [(0, [1.0, 2.0]), (2, [1.0, 2.0])],
            [(-1, [1.0, 2.0]), (0, [1.0, 2.0])],
            [(0, [1.0, 2.0]), (1, [1.0, 2.0]), (1, [1.0, 2.0])],
            [(0, [1.0, 2.0]), (1, [1.0, math.nan])],
            [(0, [1.0, 2.0]), (1, [1.0, math.inf])],
        ],
    )
    def test_an_answer_that_is_not_whole_is_refused(self, items: Any) -> None:
        with pytest.raises(EmbeddingError):
            decode(body_of(items), count=2, dimensions=2)

    def test_numbers_too_large_for_single_precision_are_refused(self) -> None:
        body = json.dumps({"data": [{"index": 0, "embedding": [1e300]}]}).encode()
        with pytest.raises(EmbeddingError, match="not finite"):
            decode(body, count=1, dimensions=1)

    @pytest.mark.parametrize("length", [0, 1, 3])
    def test_a_vector_of_another_length_is_refused(self, length: int) -> None:
        body = body_of([(0, [1.0] * length)])
        with pytest.raises(DimensionMismatch) as caught:
            decode(body, count=1, dimensions=2)
        assert (caught.value.expected, caught.value.got) == (2, length)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>hello</html>",
            b"[]",
            b"null",
            b'{"data": 1}',
            b'{"data": [{"embedding": "AAAAAA=="}]}',
            b'{"data": [{"index": 0}]}',
            b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
            b'{"data": [{"index": 0, "embedding": "AAAAA"}]}',
            b'{"data": [{"index": 0, "embedding": "AA?AAA=="}]}',
            b'{"data": [{"index": 0, "embedding": "\xc3\xa9AAAAA=="}]}',
            b'{"data": [{"index": 0, "embedding": "AAAAAA=="}]',
            b"\xff\xfe",
        ],
    )
    def test_garbage_is_a_setback(self, body: bytes) -> None:
        with pytest.raises(Setback) as caught:
            decode(body, count=1, dimensions=1)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("body", [b"", b"[]", b"1", b'{"error": "x"}', b'{"error": {}}'])
    def test_a_refusal_in_another_form_has_no_code(self, body: bytes) -> None:
        assert messages.error_code(body) is None


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "tokens"), [("", 1), ("abc", 1), ("x" * 300, 100), ("é" * 6, 5), ("人" * 6, 8)]
    )
    def test_tokens_are_estimated(self, text: str, tokens: int) -> None:
        assert estimated_tokens(text) == tokens

    @pytest.mark.parametrize("text", ["x" * 1000, "word " * 200, "人" * 500, "\n" * 500 + "end"])
    def test_pieces_are_short_enough_and_none_is_blank(self, text: str) -> None:
        pieces = Pieces([text], tokens=16)
        assert max(pieces.costs) <= 16
        assert all(map(str.strip, pieces.texts))
        assert "".join("".join(pieces.texts).split()) == "".join(text.split())

    def test_batches_hold_every_text_once(self) -> None:
        costs = [5, 5, 5, 20, 1, 1, 1, 1]
        found = list(batches(costs, size=3, tokens=10))
        assert [costs[batch] for batch in found] == [[5, 5], [5], [20], [1, 1, 1], [1]]
        assert list(batches([], size=3, tokens=10)) == []


def body_of(items: list[tuple[int, list[float]]]) -> bytes:
    data = [
        {"index": index, "embedding": packed(np.array(vector, dtype=np.float32))}
        for index, vector in items
    ]
    return json.dumps({"data": data}).encode()
