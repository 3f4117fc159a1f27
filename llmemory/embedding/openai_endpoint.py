"""Asking an endpoint for vectors: one client per event loop. Needs the extra ``openai``."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import anyio
import anyio.to_thread
import httpx
from pydantic import SecretStr

from llmemory.concurrency.loops import PerLoop
from llmemory.embedding import openai_messages as messages
from llmemory.embedding.openai_messages import Setback
from llmemory.embedding.openai_pacing import Budget, Patience, requested_wait_s
from llmemory.errors import ClosedError, ConfigurationError, ProviderRejected
from llmemory.types import Vectors

if TYPE_CHECKING:
    import ssl

__all__ = ["Endpoint", "MakeClient", "endpoint_headers", "endpoint_url"]

MakeClient: TypeAlias = Callable[..., httpx.AsyncClient]

OPENAI_URL = "https://api.openai.com/v1"
KEEP_ALIVE_S = 30.0
# Decoding more than this would hold up the event loop for some milliseconds.
LARGE_ANSWER_BYTES = 500_000
LIMITED = 429
# Request Timeout and Conflict are worth another try, as are all of 5xx.
TRANSIENT = {408, 409}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Client(NamedTuple):
    http: httpx.AsyncClient
    slots: anyio.Semaphore
    # Decoding holds the interpreter lock: in several threads it would only starve the event loop.
    decoders: anyio.CapacityLimiter


class Endpoint:
    """Sends batches of texts, in any event loop, and returns what was checked.

    Args:
        url: Where to post to.
        headers: Sent with every request.
        parameters: What a request holds beside the texts.
        dimensions: Length that vectors must have.
        max_concurrency: Most requests at once in an event loop.
        timeout_s: Seconds for one attempt.
        budget: What may be sent in a minute.
        make_patience: Makes what repeats a request.
        make_client: Makes an event loop's client.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        headers: Mapping[str, SecretStr],
        parameters: Mapping[str, Any],
        dimensions: int,
        max_concurrency: int,
        timeout_s: float,
        budget: Budget,
        make_patience: Callable[[str], Patience],
        make_client: MakeClient,
    ) -> None:
        # Without user, password and query.
        self.name = url.netloc.decode()
        self._url = url
        self._headers = dict(headers)
        self._parameters = dict(parameters)
        self._dimensions = dimensions
        self._timeout_s = timeout_s
        self._budget = budget
        self._make_patience = make_patience
        # No method of this object: in a reference cycle a forgotten one would not be closed well.
        self._clients = PerLoop(partial(_new_client, make_client, max_concurrency), _close)
        self._counting = threading.Lock()
        self._closed = False
        self.tokens_used = 0

    async def embed(self, texts: Sequence[str], *, tokens: int) -> Vectors:
        """Return one vector per text, in one request.

        Args:
            tokens: How many tokens the texts are estimated to have.
        """
        request = json.dumps({**self._parameters, "input": texts}, ensure_ascii=False)
        # A lone surrogate, which UTF-8 cannot hold, becomes a question mark.
        body = request.encode("utf-8", "replace")
        self._check_open()
        client = await self._clients.get()
        async with client.slots:
            answer = await self._make_patience(self.name).run(
                partial(self._attempt, client, body, len(texts), tokens)
            )
        with self._counting:
            self.tokens_used += answer.tokens
        return answer.vectors

    async def aclose(self) -> None:
        """Close the connections of all event loops."""
        self._closed = True
        await self._clients.aclose()

    async def _attempt(
        self, client: _Client, body: bytes, count: int, tokens: int
    ) -> messages.Answer:
        await anyio.sleep(self._budget.reserve(tokens))
        self._check_open()
        if (wait_s := self._budget.pause_left_s()) > 0:
            raise Setback("the pause that a rate limit asks for", wait_s=wait_s, limited=True)
        response = await self._post(client.http, body)
        if not response.is_success:
            self._refuse(response, tokens)
        decode = partial(
            messages.decode, response.content, count=count, dimensions=self._dimensions
        )
        if len(response.content) > LARGE_ANSWER_BYTES:
            return await anyio.to_thread.run_sync(decode, limiter=client.decoders)
        return decode()

    async def _post(self, http: httpx.AsyncClient, body: bytes) -> httpx.Response:
        cause: Exception
        try:
            with anyio.fail_after(self._timeout_s):
                return await http.post(self._url, content=body, headers=self._plain_headers())
        except TimeoutError:
            cause = TimeoutError(f"no answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            cause = _without_request(error)
        # Not raised inside of `except`: the original error holds the request, key and texts.
        raise Setback(f"{type(cause).__name__}: {cause}", cause=cause)

    def _refuse(self, response: httpx.Response, tokens: int) -> NoReturn:
        status = response.status_code
        code = messages.error_code(response.content)
        limited = status == LIMITED and code != "insufficient_quota"
        if limited or status in TRANSIENT or status >= 500:
            wait_s = requested_wait_s(response.headers, tokens=tokens)
            if limited and wait_s is not None:
                self._budget.pause(wait_s)
            raise Setback(f"status {status}", wait_s=wait_s, limited=limited)
        named = f"status {status} ({code})" if code else f"status {status}"
        raise ProviderRejected(
            f"{self.name} refused the request with {named}: {messages.remedy(status, code)}.",
            status=status,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("This embedder is closed; make a new one.")

    def _plain_headers(self) -> dict[str, str]:
        return {name: value.get_secret_value() for name, value in self._headers.items()}


def _new_client(make_client: MakeClient, max_concurrency: int) -> _Client:
    http = make_client(
        # Each attempt has a time limit of its own, which also ends an answer that drips in.
        timeout=None,
        limits=httpx.Limits(
            max_connections=max_concurrency,
            max_keepalive_connections=max_concurrency,
            keepalive_expiry=KEEP_ALIVE_S,
        ),
        verify=_certificates(),
    )
    return _Client(http, anyio.Semaphore(max_concurrency), anyio.CapacityLimiter(1))


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    # Loading them takes 20 ms, too much for every loop of a server that makes one a request.
    return httpx.create_ssl_context()


async def _close(client: _Client) -> None:
    await client.http.aclose()


def _without_request(error: httpx.HTTPError) -> httpx.HTTPError:
    # Only these texts come from the operating system; others may quote headers.
    safe = isinstance(error, httpx.NetworkError | httpx.TimeoutException)
    return type(error)(str(error) if safe else "details withheld")


def endpoint_url(
    base_url: str | None,
    azure_endpoint: str | None,
    azure_deployment: str | None,
    api_version: str,
    *,
    model: str,
) -> httpx.URL:
    """Return where to post to.

    Raises:
        ConfigurationError: It is no URL, holds a password, or both forms are given or mixed.
    """
    if azure_endpoint is None:
        if azure_deployment is not None:
            raise ConfigurationError("OpenAIEmbedder: azure_deployment needs azure_endpoint.")
        url = _checked_url("base_url", base_url or OPENAI_URL)
        return url.copy_with(path=f"{url.path.rstrip('/')}/embeddings")
    if base_url is not None:
        raise ConfigurationError("OpenAIEmbedder: pass base_url or azure_endpoint, not both.")
    url = _checked_url("azure_endpoint", azure_endpoint)
    path = f"/openai/deployments/{azure_deployment or model}/embeddings"
    return url.copy_with(path=path, params={"api-version": api_version})


def _checked_url(name: str, text: str) -> httpx.URL:
    # A wrong one is not quoted, and its error not kept: it may hold a password.
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        raise ConfigurationError(
            f"OpenAIEmbedder: {name} must be like https://host/path, without user and password."
        ) from None
    return url


def endpoint_headers(
    api_key: str | SecretStr,
    organization: str | None,
    others: Mapping[str, str] | None,
    *,
    is_azure: bool,
) -> dict[str, SecretStr]:
    """Return what is sent with every request; `others` win.

    Raises:
        ConfigurationError: A value is empty or holds what no header can carry.
    """
    key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
    if not isinstance(key, str) or not key.strip():
        raise ConfigurationError("OpenAIEmbedder: api_key is empty.")
    _check_sendable("api_key", key := key.strip())
    made = {"api-key": key} if is_azure else {"authorization": f"Bearer {key}"}
    made["content-type"] = "application/json"
    if organization is not None:
        _check_sendable("organization", organization)
        made["openai-organization"] = organization
    for name, value in (others or {}).items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"OpenAIEmbedder: {name!r} cannot be a header's name.")
        _check_sendable(f"the header {name!r}", value)
        made[name.lower()] = value
    return {name: SecretStr(value) for name, value in made.items()}


def _check_sendable(name: str, value: str) -> None:
    # Found out while sending, it would be an error that quotes the value.
    if not (value.isascii() and value.isprintable()):
        raise ConfigurationError(
            f"OpenAIEmbedder: {name} holds characters that an HTTP header cannot carry."
        )
