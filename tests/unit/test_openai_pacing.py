"""How long OpenAIEmbedder waits: what the server asks for, and requests and tokens a minute."""

from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest

from llmemory.embedding.openai_pacing import Budget, requested_wait_s

NOW = 1_800_000_000.0


class TestWaits:
    @pytest.mark.parametrize(
        ("headers", "wait_s"),
        [
            ({}, None),
            ({"retry-after": "7"}, 7),
            ({"retry-after": "0.5"}, 0.5),
            ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
            ({"retry-after": formatdate(NOW + 30), "date": formatdate(NOW)}, 30),
            ({"retry-after": formatdate(NOW - 30), "date": formatdate(NOW)}, 0),
            ({"retry-after": "soon"}, None),
            ({"retry-after": "-1"}, None),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "soon", "x-ratelimit-reset-tokens": "2s"}, 2),
            ({"x-ratelimit-reset-requests": "6m0s"}, 360),
            ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
            ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
            ({"x-ratelimit-reset-tokens": "12"}, 12),
            ({"x-ratelimit-reset-tokens": "1 fortnight"}, None),
            ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}, 3),
            (
                {
                    "x-ratelimit-remaining-requests": "0",
                    "x-ratelimit-reset-requests": "1s",
                    "x-ratelimit-remaining-tokens": "100",
                    "x-ratelimit-reset-tokens": "3s",
                },
                1,
            ),
            ({"x-ratelimit-remaining-tokens": "99", "x-ratelimit-reset-tokens": "3s"}, 3),
            ({"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "3s"}, None),
        ],
    )
    def test_what_the_headers_ask_for(self, headers: dict[str, str], wait_s: float | None) -> None:
        assert requested_wait_s(httpx.Headers(headers), tokens=100) == pytest.approx(wait_s)

    def test_a_point_in_time(self) -> None:
        headers = httpx.Headers({"x-ratelimit-reset-requests": str(time.time() + 30)})
        assert requested_wait_s(headers, tokens=1) == pytest.approx(30, abs=1)
        headers = httpx.Headers({"retry-after": formatdate(time.time() + 30)})
        assert requested_wait_s(headers, tokens=1) == pytest.approx(30, abs=2)


class TestBudget:
    def test_no_minute_holds_more_requests_than_allowed(self) -> None:
        clock = Clock()
        budget = Budget(requests_per_minute=3, tokens_per_minute=None, clock=clock)
        turns = [budget.reserve(1) for _ in range(7)]
        assert turns == [0, 0, 0, 60, 60, 60, 120]
        clock.now = 1000
        assert [budget.reserve(1) for _ in range(4)] == [0, 0, 0, 60]

    def test_no_minute_holds_more_tokens_than_allowed(self) -> None:
        clock = Clock()
        budget = Budget(requests_per_minute=None, tokens_per_minute=100, clock=clock)
        assert budget.reserve(60) == 0
        clock.now = 20
        assert budget.reserve(40) == 0
        assert budget.reserve(50) == 40
        # The order of asking is kept, even where a small one would fit before.
        assert budget.reserve(1) == 40
        assert budget.reserve(49) == 60
        # More than a minute's worth goes alone.
        assert budget.reserve(500) == 120

    def test_without_limits_nothing_waits(self) -> None:
        budget = Budget(requests_per_minute=None, tokens_per_minute=None)
        assert [budget.reserve(10**9) for _ in range(1000)] == [0] * 1000

    def test_a_pause_is_never_shortened(self) -> None:
        clock = Clock()
        budget = Budget(requests_per_minute=None, tokens_per_minute=None, clock=clock)
        assert budget.pause_left_s() == 0
        budget.pause(10)
        budget.pause(5)
        assert budget.pause_left_s() == 10
        clock.now += 11
        assert budget.pause_left_s() == 0


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
