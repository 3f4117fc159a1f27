"""OpenAI's embeddings and any endpoint that speaks the same API, over httpx."""

from __future__ import annotations

import json
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import anyio
import anyio.to_thread
import httpx
import numpy as np
from pydantic import SecretStr

from llmemory.embedding import openai_answers as answers
from llmemory.embedding.base import Purpose
from llmemory.errors import ClosedError, ConfigurationError, LLMemoryError, ProviderRejected
from llmemory.loops import PerLoop
from llmemory.types import Vectors

__all__ = ["OpenAIEmbedder"]

OPENAI_URL = "https://api.openai.com/v1"
NATIVE_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
SHORTENABLE = "text-embedding-3-"
MOST_INPUTS = 2048

# Decoding more than this would hold up the event loop for some milliseconds.
_LARGE_ANSWER_BYTES = 500_000
# Request Timeout and Conflict: what the provider itself calls worth another try, beside 5xx.
_TRANSIENT = {408, 409}
_LIMITED = 429
# Codes of the API, never other words of an answer: those may quote the key or the text.
_REMEDIES = {
    "insufficient_quota": "the account has no credit left",
    "invalid_api_key": "check api_key",
    "context_length_exceeded": "a text is too long for the model; lower max_input_tokens",
    "max_tokens_per_request": "lower batch_tokens",
    "model_not_found": "check model",
    "DeploymentNotFound": "check azure_deployment",
    400: "check model and dimensions, or lower max_input_tokens",
    401: "check api_key",
    403: "the key may not use this model or this endpoint",
    404: "check base_url and model",
    413: "lower batch_tokens",
}

MakeClient: TypeAlias = Callable[..., httpx.AsyncClient]


class OpenAIEmbedder:
    """Embeds over the API of OpenAI: theirs, Azure's, or any compatible endpoint's.

    It may be used in several event loops, one after the other or at once: each has connections
    of its own, closed with the loop or by ``aclose``. Needs the extra ``openai``.

    **Requests.** Texts are cut into requests by `batch_size` and `batch_tokens`, of which
    `max_concurrency` run at once in each event loop. Tokens are estimated, a little high, without
    a tokenizer: a third of a token per character and half of one for each further byte of its
    UTF-8. A text estimated above `max_input_tokens` is cut into pieces, at white space where
    there is some; its vector is the mean of theirs, weighted by length and scaled to length 1.

    **Waiting.** Connection errors, time-outs, status 408, 409 and 5xx and damaged answers count
    as failures, `attempts` of which end a request. Status 429 counts as none, and holds back the
    other requests as well. Pauses last what ``Retry-After`` or ``x-ratelimit-reset-...`` say,
    plus a random time below `backoff_s`, doubled each time up to 30 s. A pause that would bring
    one request's pauses above `max_wait_s` is not begun. All else that is not success is refused
    at once, and so is a 429 for want of credit.

    **Cache.** Vectors of the last `query_cache_size` different queries are kept, by model and
    text; those of documents are not.

    The key is in no ``repr``, log, error or cause of one, and neither are texts.

    Args:
        api_key: Sent as ``Authorization: Bearer``, to Azure as ``api-key``. Endpoints that need
            none take any.
        model: Name of the model, stored with the vectors.
        dimensions: Length of the vectors, 1 to 16,000. None is the length of a known model:
            ``text-embedding-3-small`` 1,536, ``-3-large`` 3,072, ``-ada-002`` 1,536.
        request_dimensions: Whether to ask the endpoint for that length, which models that cannot
            shorten their vectors refuse. None asks ``text-embedding-3-...`` for less than its own.
        base_url: What comes before ``/embeddings``.
        organization: Sent as ``OpenAI-Organization``.
        headers: Sent as well; they win over those made here.
        azure_endpoint: ``https://NAME.openai.azure.com``, in place of `base_url`.
        azure_deployment: Name of the deployment there. None is the model's.
        api_version: Version of Azure's API.
        batch_size: Most texts in a request, 1 to 2,048.
        batch_tokens: Most estimated tokens in a request; OpenAI refuses 300,000 true ones.
        max_input_tokens: Most estimated tokens of a text, at least 16; OpenAI's models take 8,191.
        max_concurrency: Most requests, and connections, at once.
        requests_per_minute: Most requests in any 60 seconds; None for no limit.
        tokens_per_minute: Most estimated tokens in any 60 seconds; None for no limit.
        timeout_s: Seconds for one attempt, from connecting to the last byte of the answer.
        attempts: Failures of a request after which it is given up.
        backoff_s: Longest first pause of our own, in seconds.
        max_wait_s: Most seconds of pauses for a request. Waiting for `requests_per_minute` and
            `tokens_per_minute` does not count.
        query_cache_size: Queries whose vectors are kept, about 4 bytes per dimension each; 0 for
            none.
        make_client: Makes an event loop's client from keyword arguments, such as
            ``functools.partial(httpx.AsyncClient, proxy="http://proxy:3128")``.

    Raises:
        ConfigurationError: An argument is wrong, or the extra is not installed.

    Example:
        >>> embedder = OpenAIEmbedder("sk-...", model="text-embedding-3-large", dimensions=1024)
    """

    provider = "openai"
    alpha = 0.5

    def __init__(
        self,
        api_key: str | SecretStr,
        *,
        model: str = "text-embedding-3-small",
        dimensions: int | None = None,
        request_dimensions: bool | None = None,
        base_url: str = OPENAI_URL,
        organization: str | None = None,
        headers: Mapping[str, str] | None = None,
        azure_endpoint: str | None = None,
        azure_deployment: str | None = None,
        api_version: str = "2024-10-21",
        batch_size: int = MOST_INPUTS,
        batch_tokens: int = 150_000,
        max_input_tokens: int = 8191,
        max_concurrency: int = 16,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        timeout_s: float = 60.0,
        attempts: int = 5,
        backoff_s: float = 0.5,
        max_wait_s: float = 120.0,
        query_cache_size: int = 1000,
        make_client: MakeClient = httpx.AsyncClient,
    ) -> None:
        if find_spec("tenacity") is None:
            raise ConfigurationError(
                'OpenAIEmbedder needs an extra: `pip install "llmemory[openai]"`.'
            )
        from llmemory.embedding.openai_limits import Budget, Patience
