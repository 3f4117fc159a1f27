"""OpenAIEmbedder without a network: what it sends, what it refuses, and its configuration."""

from __future__ import annotations

import importlib.util
import json
import math
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from integration.helpers import chain
from plugins.openai_server import packed, vector_of
from pydantic import SecretStr

from llmemory.embedding.base import Embedder, embed_checked
from llmemory.embedding.openai import OpenAIEmbedder
from llmemory.embedding.openai_messages import Setback, estimated_tokens
from llmemory.errors import (
    ConfigurationError,
    ProviderRejected,
    ProviderUnavailable,
)

KEY = "sk-hunter2-very-secret"
TEXT = "a text nobody may read"


def embedder_of(
    handler: Callable[[httpx.Request], httpx.Response], **options: Any
) -> OpenAIEmbedder:
    make_client = partial(httpx.AsyncClient, transport=httpx.MockTransport(handler))
    return OpenAIEmbedder(
        KEY, **{"dimensions": 8, "backoff_s": 0.0, "make_client": make_client, **options}
    )


def good(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    texts, dimensions = body["input"], body.get("dimensions", 1536)
    data = [
        {"index": index, "embedding": packed(vector_of(text, dimensions))}
        for index, text in enumerate(texts)
    ]
    return httpx.Response(200, json={"data": data, "usage": {"total_tokens": len(texts)}})


class Recorder:
    """Answers well and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return good(request)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


class TestRequests:
    pytestmark = pytest.mark.anyio

    async def test_openai(self) -> None:
        recorder = Recorder()
        embedder = embedder_of(recorder, organization="org-1", headers={"OpenAI-Project": "proj-1"})
        vectors = await embedder.embed(["one", "two"], purpose="document")
        assert np.array_equal(vectors, [vector_of("one", 8), vector_of("two", 8)])
        assert vectors.dtype == np.float32
        (request,) = recorder.requests
        assert str(request.url) == "https://api.openai.com/v1/embeddings"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["openai-organization"] == "org-1"
        assert request.headers["openai-project"] == "proj-1"
        assert recorder.bodies == [
            {
                "model": "text-embedding-3-small",
                "encoding_format": "base64",
                "dimensions": 8,
                "input": ["one", "two"],
            }
        ]
        assert embedder.tokens_used == 2

    async def test_azure(self) -> None:
        recorder = Recorder()
        embedder = embedder_of(
            recorder, azure_endpoint="https://me.openai.azure.com/", azure_deployment="mine"
        )
        await embedder.embed(["one"], purpose="document")
        (request,) = recorder.requests
        assert str(request.url) == (
            "https://me.openai.azure.com/openai/deployments/mine/embeddings?api-version=2024-10-21"
        )
        assert request.headers["api-key"] == KEY
        assert "authorization" not in request.headers

    @pytest.mark.parametrize(
        ("base_url", "asked"),
        [
            ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1/embeddings"),
            ("https://host/", "https://host/embeddings"),
            ("https://host/a/v1/?tenant=1", "https://host/a/v1/embeddings?tenant=1"),
        ],
    )
    async def test_a_compatible_endpoint(self, base_url: str, asked: str) -> None:
        recorder = Recorder()
        embedder = embedder_of(recorder, base_url=base_url, model="mine", dimensions=1536)
        await embedder.embed(["one"], purpose="document")
        assert str(recorder.requests[0].url) == asked
        # Most models cannot shorten their vectors and refuse the parameter.
        assert "dimensions" not in recorder.bodies[0]

    @pytest.mark.parametrize(
        ("options", "sent"),
        [
            ({"dimensions": None}, None),
            ({"dimensions": 1536}, None),
            ({"dimensions": 512}, 512),
            ({"dimensions": 512, "model": "mine", "request_dimensions": True}, 512),
        ],
    )
    async def test_dimensions_are_sent_where_they_shorten(
        self, options: dict[str, Any], sent: int | None
    ) -> None:
        recorder = Recorder()
        await embedder_of(recorder, **options).embed(["one"], purpose="document")
        assert recorder.bodies[0].get("dimensions") == sent

    async def test_headers_of_the_caller_win(self) -> None:
        recorder = Recorder()
        embedder = embedder_of(recorder, headers={"Authorization": "Basic x"})
        await embedder.embed(["one"], purpose="document")
        assert recorder.requests[0].headers.get_list("authorization") == ["Basic x"]

    async def test_batches_are_cut_by_count_and_by_tokens(self) -> None:
        recorder = Recorder()
        embedder = embedder_of(recorder)
        texts = [f"text {number}" for number in range(4100)]
        vectors = await embedder.embed(texts, purpose="document")
        assert sorted(len(body["input"]) for body in recorder.bodies) == [4, 2048, 2048]
        assert np.array_equal(vectors, [vector_of(text, 8) for text in texts])

        recorder.requests.clear()
        embedder = embedder_of(recorder, batch_tokens=100)
        await embedder.embed(["x" * 120] * 5, purpose="document")
        assert sorted(len(body["input"]) for body in recorder.bodies) == [1, 2, 2]

    async def test_a_text_that_is_too_long_is_cut_and_its_vectors_averaged(self) -> None:
        recorder = Recorder()
        embedder = embedder_of(recorder, max_input_tokens=20)
        long = "seven letters " * 10
        vectors = await embedder.embed(["short", long, "end"], purpose="document")
        (body,) = recorder.bodies
        assert body["input"][0] == "short"
        assert body["input"][-1] == "end"
        pieces = body["input"][1:-1]
        assert " ".join(pieces) == long.strip()
        assert max(map(estimated_tokens, pieces)) <= 20
        mean = np.average(
            [vector_of(piece, 8) for piece in pieces], axis=0, weights=list(map(len, pieces))
        )
        assert np.allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-6)
        assert np.array_equal(vectors[0], vector_of("short", 8))
        assert np.array_equal(vectors[2], vector_of("end", 8))

    async def test_no_texts_make_no_request(self) -> None:
        recorder = Recorder()
        vectors = await embedder_of(recorder).embed([], purpose="document")
        assert vectors.shape == (0, 8)
        assert not recorder.requests

    async def test_a_lone_surrogate_is_sent_as_a_question_mark(self) -> None:
        recorder = Recorder()
        await embedder_of(recorder).embed(["a\ud800b"], purpose="document")
        assert recorder.bodies[0]["input"] == ["a?b"]

    async def test_vectors_may_be_numbers(self) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 2.5]}]})

        embedder = embedder_of(handler, model="mine", dimensions=2)
        vectors = await embedder.embed(["one"], purpose="document")
        assert vectors.tolist() == [[1.0, 2.5]]
        assert embedder.tokens_used == 0


class TestErrors:
    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize(
        ("status", "code", "remedy"),
        [
            (400, "context_length_exceeded", "max_input_tokens"),
            (401, "invalid_api_key", "api_key"),
            (404, "model_not_found", "model"),
            (429, "insufficient_quota", "credit"),
            (301, None, "base_url"),
            (418, None, "base_url"),
        ],
    )
    async def test_a_refusal_says_what_to_do(
        self, status: int, code: str | None, remedy: str
    ) -> None:
        calls = []

        def handler(request: httpx.Request) -> httpx.Response:
            calls.append(request)
            return httpx.Response(status, json={"error": {"code": code, "message": KEY}})

        with pytest.raises(ProviderRejected, match=remedy) as caught:
            await embedder_of(handler).embed([TEXT], purpose="document")
        assert caught.value.status == status
        assert str(status) in str(caught.value)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        ("error", "quoted"),
        [
            (httpx.ConnectError, "connection refused"),
            (httpx.ReadTimeout, ""),
            (httpx.LocalProtocolError, f"{KEY} {TEXT}"),
            (httpx.ProxyError, f"{KEY} {TEXT}"),
        ],
    )
    async def test_a_failure_keeps_its_kind_but_neither_key_nor_text(
        self, error: type[httpx.RequestError], quoted: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")

        def handler(request: httpx.Request) -> httpx.Response:
            raise error(quoted, request=request)

        embedder = embedder_of(handler, attempts=2)
        with pytest.raises(ProviderUnavailable) as caught:
            await embedder.embed([TEXT], purpose="document")
        assert type(caught.value.__cause__) is error
        assert not any(isinstance(link, Setback) for link in chain(caught.value))
        shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(embedder)
        assert KEY not in shown
        assert TEXT not in shown

    async def test_the_first_failure_ends_the_other_batches(self) -> None:
        recorder = Recorder()

        def handler(request: httpx.Request) -> httpx.Response:
            recorder(request)
            return httpx.Response(401)

        embedder = embedder_of(handler, batch_size=1, max_concurrency=2)
        with pytest.raises(ProviderRejected):
            await embedder.embed(["x"] * 100, purpose="document")
        assert len(recorder.requests) <= 2

    async def test_a_very_long_pause_is_reported_instead_of_made(self) -> None:
        recorder = Recorder()

        def handler(request: httpx.Request) -> httpx.Response:
            recorder(request)
            return httpx.Response(429, headers={"retry-after": "3600"})

        embedder = embedder_of(handler)
        for _ in range(2):
            with pytest.raises(ProviderUnavailable) as caught:
                await embedder.embed(["x"], purpose="document")
            assert caught.value.retry_after_s == pytest.approx(3600, abs=5)
        # The second call knew without asking.
        assert len(recorder.requests) == 1

    async def test_rate_limits_are_no_failures(self) -> None:
        answers = [429, 429, 500, 429, 429, 200]

        def handler(request: httpx.Request) -> httpx.Response:
            status = answers.pop(0)
            return good(request) if status == 200 else httpx.Response(status)

        await embedder_of(handler, attempts=2).embed(["x"], purpose="document")
        assert not answers

    async def test_embed_checked_takes_it(self) -> None:
        embedder = embedder_of(good)
        assert isinstance(embedder, Embedder)
        vectors = await embed_checked(embedder, ["a", "b"], purpose="document", batch_size=1)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"api_key": " "}, "api_key"),
            ({"api_key": f"{KEY}\n{KEY}"}, "api_key"),
            ({"api_key": f"{KEY}é"}, "api_key"),
            ({"api_key": None}, "api_key"),
            ({"organization": "a\nb"}, "organization"),
            ({"headers": {"X-A": f"{KEY}\r\nX-B: c"}}, "X-A"),
            ({"headers": {"X A": "b"}}, "X A"),
            ({"base_url": "ftp://host"}, "base_url"),
            ({"base_url": "nonsense"}, "base_url"),
            ({"base_url": f"https://me:{KEY}@host/v1"}, "base_url"),
            ({"base_url": f"https://host:{KEY}/v1"}, "base_url"),
            ({"base_url": "https://a", "azure_endpoint": "https://b"}, "not both"),
            ({"azure_deployment": "mine"}, "azure_endpoint"),
            ({"azure_endpoint": "me.openai.azure.com"}, "azure_endpoint"),
            ({"model": "mine"}, "dimensions"),
            ({"dimensions": 1537}, "1 to 1536"),
            ({"dimensions": 0}, "1 to 1536"),
            ({"model": "text-embedding-ada-002", "dimensions": 512}, "1536 to 1536"),
            ({"model": "mine", "dimensions": 16_001}, "16000"),
            ({"batch_size": 2049}, "batch_size"),
            ({"max_concurrency": 0}, "max_concurrency"),
            ({"timeout_s": 0}, "timeout_s"),
            ({"timeout_s": math.nan}, "timeout_s"),
            ({"attempts": 0}, "attempts"),
            ({"tokens_per_minute": 0}, "tokens_per_minute must be at least 16"),
        ],
    )
    def test_what_is_wrong_is_named(self, options: dict[str, Any], word: str) -> None:
        with pytest.raises(ConfigurationError, match=word) as caught:
            OpenAIEmbedder(**{"api_key": KEY, **options})
        assert KEY not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("key", [KEY, SecretStr(KEY), f" {KEY}\n"])
    def test_the_key_is_shown_nowhere(self, key: str | SecretStr) -> None:
        embedder = OpenAIEmbedder(key, headers={"x-other": KEY})
        assert repr(embedder) == (
            "OpenAIEmbedder(model='text-embedding-3-small', dimensions=1536, "
            "endpoint='api.openai.com')"
        )
        assert KEY not in f"{embedder} {vars(embedder)} {vars(embedder._endpoint)}"

    def test_without_the_extra_it_says_how_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmemory.embedding.openai.find_spec", lambda name: None)
        with pytest.raises(ConfigurationError, match=r"pip install \"\.\[openai\]\""):
            OpenAIEmbedder(KEY)
        assert importlib.util.find_spec("tenacity")
