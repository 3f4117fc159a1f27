"""What goes into a request for embeddings, and what comes back: pure, without any network."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from llmemory.errors import DimensionMismatch, EmbeddingError
from llmemory.types import Vectors

__all__ = [
    "Answer",
    "Pieces",
    "Setback",
    "batches",
    "decode",
    "error_code",
    "estimated_tokens",
    "remedy",
]

_REMEDIES: dict[str | int, str] = {
    "insufficient_quota": "the account has no credit left",
    "invalid_api_key": "check api_key",
    "model_not_found": "check model",
    "context_length_exceeded": "a text is too long for the model; lower max_input_tokens",
    "max_tokens_per_request": "lower batch_tokens",
    "DeploymentNotFound": "check azure_deployment",
    400: "check model and dimensions, or lower max_input_tokens",
    401: "check api_key",
    403: "the key may not be used for this model or endpoint",
    404: "check base_url and model",
    413: "lower batch_tokens",
}


class Setback(Exception):
    """An attempt failed in a way that another one may not.

    Args:
        reason: What happened, for a message: without key and text.
        wait_s: Seconds that the provider asked to wait, or None.
        limited: Whether a rate limit was met, which is waiting and not failing.
        cause: What the final error gets as its ``__cause__``.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait_s: float | None = None,
        limited: bool = False,
        cause: Exception | None = None,
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.limited = limited
        self.cause = cause


@dataclass(frozen=True)
class Answer:
    """A checked answer.

    Attributes:
        vectors: One row per text, in the order of the texts.
        tokens: What the provider counted; 0 if it does not say.
    """

    vectors: Vectors
    tokens: int


class _Item(BaseModel):
    index: int
    embedding: str | list[float]


class _Usage(BaseModel):
    total_tokens: int | None = None


class _Body(BaseModel):
    data: list[_Item]
    usage: _Usage | None = None


def decode(body: bytes, *, count: int, dimensions: int) -> Answer:
    """Return the vectors of an answer, sorted by their index.

    Vectors are base64 of little-endian float32. Lists of numbers are understood as well: some
    endpoints ignore ``encoding_format``.

    Raises:
        Setback: It is not JSON of the API's form, or its base64 is damaged.
        DimensionMismatch: A vector of another length than `dimensions`.
        EmbeddingError: Vectors are missing, doubled or hold values that are not finite.
    """
    parsed = _parse(body)
    if parsed is None:
        raise Setback("an answer in another form than the API's")
    indexes = [item.index for item in parsed.data]
    if sorted(indexes) != list(range(count)):
        raise EmbeddingError(
            f"The provider returned {len(indexes)} vectors, {len(set(indexes))} of them with an "
            f"index of their own, for {count} texts."
        )
    vectors = np.empty((count, dimensions), dtype=np.float32)
    for item in parsed.data:
        vector = _vector(item.embedding)
        if vector is None:
            raise Setback("damaged base64")
        if vector.size != dimensions:
            raise DimensionMismatch(
                f"The provider returned a vector of {vector.size} dimensions; {dimensions} are "
                "expected. Change dimensions or the model.",
                expected=dimensions,
                got=int(vector.size),
            )
        vectors[item.index] = vector
    if not np.isfinite(vectors).all():
        raise EmbeddingError("The provider returned a vector with values that are not finite.")
    tokens = (parsed.usage.total_tokens if parsed.usage else None) or 0
    return Answer(vectors, max(tokens, 0))


def _parse(body: bytes) -> _Body | None:
    # Not raised from pydantic's error: its text quotes the answer, which may quote the request.
    try:
        return _Body.model_validate_json(body)
    except PydanticValidationError:
        return None


def _vector(embedding: str | list[float]) -> Vectors | None:
    if isinstance(embedding, list):
        with np.errstate(over="ignore"):
            return np.asarray(embedding, dtype=np.float32)
    try:
        packed = base64.b64decode(embedding, validate=True)
    except (binascii.Error, ValueError):
        return None
    return np.frombuffer(packed, dtype="<f4") if len(packed) % 4 == 0 else None


def error_code(body: bytes) -> str | None:
    """Return the code of a refusal, if it is one that this library knows.

    Nothing else of a refusal is ever shown: it may quote the key or the text.
    """
    try:
        error = json.loads(body)["error"]
        codes = [error.get("code"), error.get("type")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return next((code for code in codes if isinstance(code, str) and code in _REMEDIES), None)


def remedy(status: int, code: str | None) -> str:
    """Return what to do about a refusal."""
    found = _REMEDIES.get(code or status) or _REMEDIES.get(status)
    return found or "check base_url, and whether the endpoint speaks this API"


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has: never less than 1.

    A third of a token per character and half of one for each further byte of its UTF-8. Beside
    ``cl100k_base`` that is 1.4 times the truth for English, 1 to 1.6 for other widespread
    languages, and half of it at worst: base64, digits, emoji.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    return max(1, math.ceil(len(text) / 3 + (size - len(text)) / 2))


def batches(costs: Sequence[int], *, size: int, tokens: int) -> Iterator[slice]:
    """Yield which texts go into one request, in order.

    Args:
        costs: Estimated tokens of each text.
        size: Most texts in a batch.
        tokens: Most estimated tokens in a batch; a text above it goes alone.
    """
    start = spent = 0
    for position, cost in enumerate(costs):
        if position > start and (position - start == size or spent + cost > tokens):
            yield slice(start, position)
            start, spent = position, 0
        spent += cost
    if costs:
        yield slice(start, len(costs))


class Pieces:
    """Texts of which those that are too long are cut into pieces.

    The vector of a text that was cut is the mean of its pieces' vectors, weighted by their
    length and scaled to length 1. Source: OpenAI Cookbook, "Embedding texts that are longer than
    the model's maximum context length".

    Args:
        texts: What is to be embedded.
        tokens: Most estimated tokens of a piece.

    Attributes:
        texts: The pieces, in the order of the texts.
        costs: Their estimated tokens.
    """

    def __init__(self, texts: Sequence[str], *, tokens: int) -> None:
        cut = [_cut(text, tokens) for text in texts]
        self.texts = [piece for pieces in cut for piece, _ in pieces]
        self.costs = [cost for pieces in cut for _, cost in pieces]
        self._counts = [len(pieces) for pieces in cut]

    def joined(self, vectors: Vectors) -> Vectors:
        """Return one vector per text, given one per piece."""
        if len(self._counts) == len(self.texts):
            return vectors
        joined = np.empty((len(self._counts), vectors.shape[1]), dtype=np.float32)
        end = 0
        for position, count in enumerate(self._counts):
            start, end = end, end + count
            joined[position] = vectors[start]
            if count > 1:
                weights = [len(text) for text in self.texts[start:end]]
                mean = np.average(vectors[start:end], axis=0, weights=weights)
                joined[position] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return joined


def _cut(text: str, tokens: int) -> list[tuple[str, int]]:
    """Return pieces and their estimated tokens: halves of halves, cut at spaces if possible."""
    cost = estimated_tokens(text)
    if cost <= tokens or len(text) == 1:
        return [(text, cost)]
    middle = len(text) // 2
    space = max(text.rfind(space, middle // 2, middle) for space in " \n")
    middle = space if space > 0 else middle
    # Providers refuse blank texts.
    halves = [half for half in (text[:middle].strip(), text[middle:].strip()) if half]
    return [piece for half in halves for piece in _cut(half, tokens)]
