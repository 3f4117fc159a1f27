"""OpenAIEmbedder against a real HTTP server on loopback, which also fails in every way."""

from __future__ import annotations

import math
import pickle
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import anyio
import numpy as np
import pytest
from plugins.openai_embedders import (
    DIMENSIONS,
    KEY,
    TEXT,
    embedded_well,
    embedder_for,
)
from plugins.openai_server import (
    Behaviour,
    OpenAIServer,
    altered,
    cut,
    packed,
    raw,
    slowly,
    status,
)

from llmemory.embedding.openai import OpenAIEmbedder
from llmemory.errors import (
    DimensionMismatch,
    EmbeddingError,
    ProviderRejected,
    ProviderUnavailable,
)

pytestmark = [pytest.mark.anyio, pytest.mark.direct("no database is asked")]


class TestAnswers:
    async def test_vectors_come_in_the_order_of_the_texts(
        self, openai_server: OpenAIServer
    ) -> None:
        embedder = embedder_for(openai_server, batch_size=10, max_concurrency=7)
        texts = [f"text {number}" for number in range(995)]
        assert await embedded_well(embedder, *texts)
        assert len(openai_server.requests) == 100
        assert embedder.tokens_used == 995
        await embedder.aclose()

    async def test_a_reordered_answer_is_sorted_back(self, openai_server: OpenAIServer) -> None:
        openai_server.answers(altered(lambda items: items[::-1]))
        embedder = embedder_for(openai_server)
        assert await embedded_well(embedder, "one", "two", "three")
        await embedder.aclose()

    async def test_a_large_answer(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server, dimensions=1536)
        assert await embedded_well(embedder, *(f"text {number}" for number in range(2048)))
        assert len(openai_server.requests) == 1
        await embedder.aclose()

    async def test_requests_run_at_once_but_not_too_many(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server, batch_size=1, max_concurrency=3)
        openai_server.answers(*[slowly(silence_s=0.1)] * 12)
        started = time.monotonic()
        async with anyio.create_task_group() as group:
            for number in range(2):
                texts = [f"{number}.{position}" for position in range(6)]
                group.start_soon(embedded_well, embedder, *texts)
        assert openai_server.most_at_once == 3
        assert openai_server.open_connections == 3
        assert time.monotonic() - started >= 0.4
        await embedder.aclose()


class TestRefusedAnswers:
    """What must not be stored, and would be the same if asked again."""

    @pytest.mark.parametrize(
        ("alter", "error"),
        [
            (lambda items: items[:1], EmbeddingError),
            (lambda items: [items[0], items[0]], EmbeddingError),
            (lambda items: [*items, items[0]], EmbeddingError),
            (lambda items: [items[0], with_vector(items[1], math.nan)], EmbeddingError),
            (lambda items: [items[0], with_vector(items[1], math.inf)], EmbeddingError),
            (lambda items: [items[0], with_vector(items[1], 1.0, 2.0)], DimensionMismatch),
        ],
        ids=["missing", "duplicate", "one too many", "nan", "infinite", "wrong length"],
    )
    async def test_vectors_that_are_wrong(
        self, openai_server: OpenAIServer, alter: Any, error: type[EmbeddingError]
    ) -> None:
        openai_server.answers(altered(alter))
        embedder = embedder_for(openai_server)
        with pytest.raises(error) as caught:
            await embedder.embed(["one", "two"], purpose="document")
        assert type(caught.value) is error
        assert len(openai_server.requests) == 1
        assert await embedded_well(embedder, "one", "two")
        await embedder.aclose()

    @pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
    async def test_a_refused_request(self, openai_server: OpenAIServer, code: int) -> None:
        openai_server.answers(status(code, retry_after="1"))
        embedder = embedder_for(openai_server)
        with pytest.raises(ProviderRejected) as caught:
            await embedder.embed([TEXT], purpose="document")
        assert caught.value.status == code
        assert len(openai_server.requests) == 1
        await embedder.aclose()

    async def test_no_credit_is_not_waited_for(self, openai_server: OpenAIServer) -> None:
        openai_server.answers(status(429, "insufficient_quota"))
        embedder = embedder_for(openai_server)
        with pytest.raises(ProviderRejected, match="credit"):
            await embedder.embed(["one"], purpose="document")
        await embedder.aclose()

    async def test_a_redirect_is_not_followed_with_the_key(
        self, openai_server: OpenAIServer
    ) -> None:
        openai_server.answers(status(302, location=f"{openai_server.url}/elsewhere"))
        embedder = embedder_for(openai_server)
        with pytest.raises(ProviderRejected):
            await embedder.embed(["one"], purpose="document")
        assert len(openai_server.requests) == 1
        await embedder.aclose()


FAILURES = {
    "500": (status(500), "status 500"),
    "503": (status(503), "status 503"),
    "408": (status(408), "status 408"),
    "garbage": (raw(b"<html>It works!</html>"), "another form"),
    "half of the json": (raw(b'{"data": [{"index": 0, "embed'), "another form"),
    "nothing": (raw(b""), "another form"),
    "truncated base64": (
        altered(lambda items: [{**items[0], "embedding": items[0]["embedding"][:-3]}]),
        "base64",
    ),
    "cut connection": (cut, "withheld"),
    "slow body": (slowly(drip_s=0.1), "no answer within"),
    "30 s of silence": (slowly(silence_s=30), "no answer within"),
}
# A busy machine may be as slow by itself: nobody else is given so little time.
TIMEOUTS_S = {"slow body": 0.5, "30 s of silence": 0.5}


class TestFailures:
    """What another attempt may mend."""

    @pytest.mark.parametrize("name", FAILURES)
    async def test_it_is_tried_again(self, openai_server: OpenAIServer, name: str) -> None:
        behaviour, _ = FAILURES[name]
        openai_server.answers(behaviour, behaviour)
        too_slow = name in TIMEOUTS_S
        embedder = embedder_for(
            openai_server, attempts=10 if too_slow else 3, timeout_s=TIMEOUTS_S.get(name, 30)
        )
        assert await embedded_well(embedder, "one")
        assert len(openai_server.requests) == 3 or (too_slow and len(openai_server.requests) > 3)
        await embedder.aclose()

    @pytest.mark.parametrize("name", FAILURES)
    async def test_it_is_given_up(self, openai_server: OpenAIServer, name: str) -> None:
        behaviour, words = FAILURES[name]
        openai_server.answers(*[behaviour] * 3)
        embedder = embedder_for(openai_server, attempts=2, timeout_s=TIMEOUTS_S.get(name, 30))
        with pytest.raises(ProviderUnavailable, match=words) as caught:
            await embedder.embed(["one"], purpose="document")
        assert "2 attempts" in str(caught.value)
        assert caught.value.retry_after_s is None
        assert len(openai_server.requests) == 2
        await embedder.aclose()

    async def test_nobody_listens(self, openai_server: OpenAIServer) -> None:
        embedder = OpenAIEmbedder(KEY, base_url="http://127.0.0.1:9", attempts=2, backoff_s=0)
        with pytest.raises(ProviderUnavailable, match="2 attempts"):
            await embedder.embed(["one"], purpose="document")
        await embedder.aclose()

    async def test_a_server_that_is_busy_says_for_how_long(
        self, openai_server: OpenAIServer
    ) -> None:
        openai_server.answers(status(503, retry_after="1"), status(503, retry_after="77"))
        embedder = embedder_for(openai_server, attempts=2)
        with pytest.raises(ProviderUnavailable) as caught:
            await embedder.embed(["one"], purpose="document")
        assert caught.value.retry_after_s == 77
        first, second = openai_server.requests
        assert second.at_s - first.at_s >= 1
        await embedder.aclose()


# How late anything may be on a busy machine.
MUCH_S = 30


class TestRateLimits:
    """Status 429 is waiting, not failing: here with a single attempt allowed."""

    @pytest.mark.parametrize(
        ("headers", "least_s"),
        [
            ({}, 0),
            ({"retry_after": "1"}, 1),
            ({"retry_after_ms": "300"}, 0.3),
            ({"x_ratelimit_reset_requests": "1s"}, 1),
            ({"x_ratelimit_reset_tokens": "400ms"}, 0.4),
        ],
    )
    async def test_it_waits_as_long_as_asked(
        self,
        openai_server: OpenAIServer,
        headers: dict[str, str],
        least_s: float,
    ) -> None:
        openai_server.answers(status(429, **headers))
        embedder = embedder_for(openai_server, attempts=1)
        assert await embedded_well(embedder, "one")
        first, second = openai_server.requests
        assert least_s <= second.at_s - first.at_s < least_s + MUCH_S
        await embedder.aclose()

    async def test_a_date_is_compared_with_the_servers_clock(
        self, openai_server: OpenAIServer
    ) -> None:
        date, later = formatdate(1_000_000_000), formatdate(1_000_000_001)
        openai_server.answers(status(429, date=date, retry_after=later))
        embedder = embedder_for(openai_server, attempts=1)
        assert await embedded_well(embedder, "one")
        first, second = openai_server.requests
        assert 1 <= second.at_s - first.at_s < 1 + MUCH_S
        await embedder.aclose()

    async def test_many_in_a_row(self, openai_server: OpenAIServer) -> None:
        openai_server.answers(*[status(429)] * 6)
        embedder = embedder_for(openai_server, attempts=1)
        assert await embedded_well(embedder, "one")
        await embedder.aclose()

    async def test_other_requests_are_held_back_as_well(self, openai_server: OpenAIServer) -> None:
        openai_server.answers(status(429, retry_after="1"))
        embedder = embedder_for(openai_server, attempts=1, batch_size=1, max_concurrency=2)
        assert await embedded_well(embedder, *(f"text {number}" for number in range(20)))
        times = [request.at_s for request in openai_server.requests]
        # The one beside it was under way, and perhaps one more while its answer was.
        assert len([moment for moment in times if moment < times[0] + 1]) <= 3
        await embedder.aclose()

    async def test_it_waits_no_longer_than_max_wait_s(self, openai_server: OpenAIServer) -> None:
        # It would be asked again in an hour, which no test may take.
        openai_server.answers(status(429, retry_after="3600"))
        embedder = embedder_for(openai_server, max_wait_s=30)
        with pytest.raises(ProviderUnavailable) as caught:
            await embedder.embed(["one"], purpose="document")
        assert caught.value.retry_after_s == 3600
        assert len(openai_server.requests) == 1
        await embedder.aclose()

    async def test_no_more_requests_a_minute_than_allowed(
        self, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmemory.embedding.openai_pacing.MINUTE_S", 0.5)
        embedder = embedder_for(openai_server, batch_size=1, requests_per_minute=4)
        started = time.monotonic()
        assert await embedded_well(embedder, *(f"text {number}" for number in range(12)))
        # Any of them may be late on its way, but none early.
        times = sorted(request.at_s - started for request in openai_server.requests)
        assert len(times) == 12
        assert all(moment >= 0.5 * (place // 4) for place, moment in enumerate(times))
        await embedder.aclose()


class TestSecrets:
    @pytest.mark.parametrize(
        "behaviour",
        [status(400), status(401), status(429, retry_after="999"), status(500), cut, raw(b"{}")],
    )
    async def test_neither_key_nor_text_is_shown(
        self,
        openai_server: OpenAIServer,
        behaviour: Behaviour,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level("DEBUG")
        openai_server.answers(behaviour, behaviour)
        embedder = embedder_for(openai_server, attempts=2)
        with pytest.raises(EmbeddingError) as caught:
            await embedder.embed([TEXT], purpose="document")
        shown = "".join(traceback.format_exception(caught.value))
        links = list(all_links(caught.value))
        shown += "".join(f"{link!r} {vars(link)}" for link in links)
        for secret in (KEY, TEXT):
            assert secret not in shown
            assert secret not in caplog.text
        # An httpx error holds the request, unless it has been taken out.
        assert not any(getattr(link, "_request", None) for link in links)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        await embedder.aclose()


def all_links(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its causes and contexts, also those that a traceback does not show."""
    yield error
    for link in (error.__cause__, error.__context__):
        if link is not None:
            yield from all_links(link)


def with_vector(item: dict[str, Any], *numbers: float) -> dict[str, Any]:
    """Return an item with another vector: of these numbers, or of the same one again and again."""
    vector = np.array(numbers * DIMENSIONS if len(numbers) == 1 else numbers, dtype=np.float32)
    return {**item, "embedding": packed(vector)}
