"""OpenAI's embeddings and any endpoint that speaks the same API, over httpx."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import httpx
import numpy as np
from pydantic import SecretStr

from llmemory.concurrency.tasks import for_each
from llmemory.embedding import openai_messages as messages
from llmemory.embedding.base import Purpose
from llmemory.errors import ConfigurationError
from llmemory.types import Vectors

if TYPE_CHECKING:
    from llmemory.embedding.openai_endpoint import MakeClient

__all__ = ["OpenAIEmbedder"]

NATIVE_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
SHORTENABLE = "text-embedding-3-"
MOST_INPUTS = 2048


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

    The key is in no ``repr``, log, error or cause of one, and neither are texts.

    Args:
        api_key: Sent as ``Authorization: Bearer``, to Azure as ``api-key``. Endpoints that need
            none take any.
        model: Name of the model, stored with the vectors.
        dimensions: Length of the vectors, 1 to 16,000. None is the length of a known model:
            ``text-embedding-3-small`` 1,536, ``-3-large`` 3,072, ``-ada-002`` 1,536.
        request_dimensions: Whether to ask the endpoint for that length, which models that cannot
            shorten their vectors refuse. None asks ``text-embedding-3-...`` for less than its own.
        base_url: What comes before ``/embeddings``. None is ``https://api.openai.com/v1``.
        organization: Sent as ``OpenAI-Organization``.
        headers: Sent as well; they win over those made here.
        azure_endpoint: ``https://NAME.openai.azure.com``, in place of `base_url`.
        azure_deployment: Name of the deployment there. None is the model's.
        api_version: Version of Azure's API.
        batch_size: Most texts in a request, 1 to 2,048.
        batch_tokens: Most estimated tokens in a request; OpenAI refuses 300,000 true ones.
        max_input_tokens: Most estimated tokens of a text, at least 16; OpenAI's models take 8,191.
        max_concurrency: Most requests, and connections, at once. Bulk calls and workers keep as
            many under way.
        requests_per_minute: Most requests in any 60 seconds; None for no limit.
        tokens_per_minute: Most estimated tokens in any 60 seconds; None for no limit.
        timeout_s: Seconds for one attempt, from connecting to the last byte of the answer.
        attempts: Failures of a request after which it is given up.
        backoff_s: Longest first pause of our own, in seconds.
        max_wait_s: Most seconds of pauses for a request. Waiting for `requests_per_minute` and
            `tokens_per_minute` does not count.
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
        base_url: str | None = None,
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
        make_client: MakeClient = httpx.AsyncClient,
    ) -> None:
        if find_spec("tenacity") is None:
            raise ConfigurationError('OpenAIEmbedder needs an extra: `pip install ".[openai]"`.')
        from llmemory.embedding.openai_endpoint import Endpoint, endpoint_headers, endpoint_url
        from llmemory.embedding.openai_pacing import Budget, Patience

        self.model = model
        self.dimensions = _checked_dimensions(model, dimensions)
        for name, value, least, most in (
            ("batch_size", batch_size, 1, MOST_INPUTS),
            ("batch_tokens", batch_tokens, 16, math.inf),
            ("max_input_tokens", max_input_tokens, 16, math.inf),
            ("max_concurrency", max_concurrency, 1, 1000),
            ("requests_per_minute", requests_per_minute, 1, math.inf),
            ("tokens_per_minute", tokens_per_minute, 16, math.inf),
            ("timeout_s", timeout_s, 0.001, math.inf),
            ("attempts", attempts, 1, 100),
            ("backoff_s", backoff_s, 0, 60),
            ("max_wait_s", max_wait_s, 0, math.inf),
        ):
            if value is not None and not least <= value <= most:
                limits = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise ConfigurationError(f"OpenAIEmbedder: {name} must be {limits}.")
        if request_dimensions is None:
            request_dimensions = _is_shortened(model, self.dimensions)
        self._endpoint = Endpoint(
            endpoint_url(base_url, azure_endpoint, azure_deployment, api_version, model=model),
            headers=endpoint_headers(
                api_key, organization, headers, is_azure=azure_endpoint is not None
            ),
            parameters={
                "model": model,
                "encoding_format": "base64",
                **({"dimensions": self.dimensions} if request_dimensions else {}),
            },
            dimensions=self.dimensions,
            max_concurrency=max_concurrency,
            timeout_s=timeout_s,
            budget=Budget(
                requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
            ),
            make_patience=partial(
                Patience, attempts=attempts, backoff_s=backoff_s, max_wait_s=max_wait_s
            ),
            make_client=make_client,
        )
        self._batch_size = batch_size
        self._batch_tokens = min(batch_tokens, tokens_per_minute or batch_tokens)
        self._max_input_tokens = min(max_input_tokens, self._batch_tokens)
        self.max_concurrency = max_concurrency

    def __repr__(self) -> str:
        return (
            f"OpenAIEmbedder(model={self.model!r}, dimensions={self.dimensions}, "
            f"endpoint={self._endpoint.name!r})"
        )

    @property
    def tokens_used(self) -> int:
        """Tokens that the provider counted for all that was embedded; 0 if it does not say."""
        return self._endpoint.tokens_used

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return one vector per text, in order, as the endpoint made them.

        Args:
            texts: Any number of texts, none of them blank.
            purpose: Makes no difference to the endpoint.

        Returns:
            Array of shape ``(len(texts), dimensions)``, float32, all finite.

        Raises:
            ProviderUnavailable: The endpoint did not answer in time, or not usefully.
            ProviderRejected: It refused the request.
            DimensionMismatch: It returned vectors of another length.
            EmbeddingError: It returned vectors that are missing, doubled or not finite.
            ClosedError: ``aclose`` was called.
        """
        pieces = messages.Pieces(texts, tokens=self._max_input_tokens)
        vectors = np.empty((len(pieces.texts), self.dimensions), dtype=np.float32)
        batches = list(
            messages.batches(pieces.costs, size=self._batch_size, tokens=self._batch_tokens)
        )

        async def embed(batch: slice) -> None:
            texts, cost = pieces.texts[batch], sum(pieces.costs[batch])
            vectors[batch] = await self._endpoint.embed(texts, tokens=cost)

        # No more than may run at once: another call's batches take turns with these.
        await for_each(batches, embed, at_once=min(self.max_concurrency, len(batches)))
        return pieces.joined(vectors)

    async def aclose(self) -> None:
        """Close the connections of all event loops; nothing is sent from now on."""
        await self._endpoint.aclose()


def _checked_dimensions(model: str, dimensions: int | None) -> int:
    native = NATIVE_DIMENSIONS.get(model)
    if dimensions is None:
        if native is None:
            raise ConfigurationError(
                f"OpenAIEmbedder: how long are the vectors of {model!r}? Pass dimensions."
            )
        return native
    most = native or 16_000
    least = 1 if native is None or model.startswith(SHORTENABLE) else native
    if not least <= dimensions <= most:
        raise ConfigurationError(
            f"OpenAIEmbedder: dimensions of {model!r} must be {least} to {most}."
        )
    return dimensions


def _is_shortened(model: str, dimensions: int) -> bool:
    return model in NATIVE_DIMENSIONS and dimensions < NATIVE_DIMENSIONS[model]
