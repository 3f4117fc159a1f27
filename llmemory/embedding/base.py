"""What an embedder is, and how one is called safely."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

import anyio

from llmemory.concurrency.tasks import for_each
from llmemory.errors import (
    ConfigurationError,
    DimensionMismatch,
    EmbeddingError,
    LLMemoryError,
)
from llmemory.types import HalfVectors, Vectors

__all__ = [
    "Embedder",
    "Purpose",
    "alpha_for",
    "alpha_of",
    "checked_embedder",
    "concurrency_of",
    "embed_checked",
    "find_dimensions",
    "provider_of",
]

MOST_DIMENSIONS = 16_000
MOST_CALLS = 1_000
DEFAULT_ALPHA = 0.5

Purpose: TypeAlias = Literal["document", "query"]


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors; implement it to bring your own model.

    An embedder may have more: ``provider``, a name stored beside the model's (else the name of
    its class); ``alpha``, the weight of the vector arm in hybrid search, 0 to 1 (else 0.5);
    ``alpha_for(query)``, which returns it where it depends on the query, and is called once that
    is embedded; ``max_concurrency``, how many calls of ``embed`` a bulk call or a worker may have
    under way at once (else 1); ``async find_dimensions()``, after which ``dimensions`` is known at
    once, where reading it would wait; and ``async aclose()``, called by nobody but its owner.
    """

    @property
    def model(self) -> str:
        """Name of the model: vectors of different names are never compared."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of each vector, 1 to 16,000; 1 to 4,000 can be indexed."""
        ...

    async def embed(self, texts: Sequence[str], *, purpose: Purpose) -> Vectors:
        """Return one vector per text, in order.

        Args:
            texts: At least one text, none of them blank.
            purpose: "document" for what is stored, "query" for what is asked; models that make
                no difference ignore it.

        Returns:
            Array of shape ``(len(texts), dimensions)``, float32, all finite.

        Raises:
            EmbeddingError: The model or its provider failed.
        """
        ...


def checked_embedder(embedder: object) -> Embedder:
    """Return `embedder` if it is one and announces what can be stored.

    Raises:
        ConfigurationError: It lacks something of the protocol, or what it announces is no name of
            a model, no number of dimensions or no number of calls.
    """
    finds_dimensions = hasattr(type(embedder), "find_dimensions")
    parts = ("model", "embed") if finds_dimensions else ("model", "embed", "dimensions")
    if isinstance(embedder, type) or not all(hasattr(embedder, part) for part in parts):
        raise ConfigurationError(
            "embedder must be an object with model, dimensions and embed(), such as "
            f"StaticEmbedder(), not {embedder if isinstance(embedder, type) else type(embedder)}."
        )
    checked = cast("Embedder", embedder)
    model = checked.model
    if not isinstance(model, str) or not model.strip() or "\0" in model:
        raise ConfigurationError("embedder.model must be the name of a model.")
    _check_number("max_concurrency", concurrency_of(checked), MOST_CALLS)
    if not finds_dimensions:
        _check_number("dimensions", checked.dimensions, MOST_DIMENSIONS)
    return checked


async def find_dimensions(embedder: Embedder) -> None:
    """Have `embedder` know its dimensions, if it is one that must find them out.

    Raises:
        ConfigurationError: They are no number of dimensions, or it cannot find them.
    """
    find = getattr(embedder, "find_dimensions", None)
    if find is not None:
        await find()
        _check_number("dimensions", embedder.dimensions, MOST_DIMENSIONS)


def _check_number(name: str, value: object, most: int) -> None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 1 <= value <= most:  # type: ignore[operator]
        raise ConfigurationError(f"embedder.{name} must be 1 to {most}.")


def provider_of(embedder: Embedder) -> str:
    """Return the name that stands beside the model's in the database."""
    return str(getattr(embedder, "provider", type(embedder).__name__))


def alpha_of(embedder: Embedder) -> float | None:
    """Return the weight of the vector arm in hybrid search, None where it depends on the query."""
    if callable(getattr(embedder, "alpha_for", None)):
        return None
    alpha = getattr(embedder, "alpha", None)
    return DEFAULT_ALPHA if alpha is None else float(alpha)


def alpha_for(embedder: Embedder, query: str) -> float:
    """Return the weight of the vector arm in hybrid search for `query`, where it depends on that.

    Raises:
        EmbeddingError: The embedder failed, or it is no weight.
    """
    try:
        alpha = float(embedder.alpha_for(query))  # type: ignore[attr-defined]
    except LLMemoryError:
        raise
    except Exception as error:
        raise EmbeddingError(
            f"alpha_for of the embedder {embedder.model!r} failed with {type(error).__name__}. "
            "See the cause above."
        ) from error
    if not 0 <= alpha <= 1:
        raise EmbeddingError(
            f"alpha_for of the embedder {embedder.model!r} must return a weight from 0 to 1, "
            f"not {alpha}."
        )
    return alpha


def concurrency_of(embedder: Embedder) -> int:
    """Return how many calls `embedder` is given at once."""
    most: int = getattr(embedder, "max_concurrency", 1)
    return most


async def embed_checked(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    purpose: Purpose,
    batch_size: int,
    turns: anyio.CapacityLimiter | None = None,
) -> HalfVectors:
    """Embed `texts` in batches, check what comes back and scale it to length 1.

    The vectors of a long document are the largest part of what adding it holds, so that they have
    the precision from the start that they are stored in.

    Cosine similarity does not see the length, but half precision would overflow or vanish at
    unusual ones. A vector of zeros stays as it is.

    Args:
        embedder: Who is asked.
        texts: Any number of them.
        purpose: As the embedder takes it.
        batch_size: Texts a call.
        turns: Who may call it just now; None makes one call after the other.

    Raises:
        DimensionMismatch: Vectors of another length than announced.
        EmbeddingError: The wrong number of vectors, values that are not finite, or a failure.
    """
    # Imported late: it would be a seventh of the time that importing the library takes.
    import numpy as np

    vectors = np.empty((len(texts), embedder.dimensions), dtype=np.float16)
    starts = range(0, len(texts), batch_size)

    async def embed(start: int) -> None:
        batch = texts[start : start + batch_size]
        async with turns or nullcontext():
            made = await _embed_batch(embedder, batch, purpose)
        norms = np.linalg.norm(made.astype(np.float64), axis=1, keepdims=True)
        vectors[start : start + len(batch)] = made / np.where(norms > 0, norms, 1)

    at_once = 1 if turns is None else min(int(turns.total_tokens), len(starts))
    await for_each(starts, embed, at_once=at_once)
    return vectors


async def _embed_batch(embedder: Embedder, texts: Sequence[str], purpose: Purpose) -> Vectors:
    import numpy as np

    try:
        made = np.asarray(await embedder.embed(texts, purpose=purpose), dtype=np.float32)
    except LLMemoryError:
        raise
    except Exception as error:
        raise EmbeddingError(
            f"The embedder {embedder.model!r} failed with {type(error).__name__}; nothing was "
            "stored. See the cause above."
        ) from error
    if made.ndim != 2 or made.shape[0] != len(texts):
        raise EmbeddingError(
            f"The embedder {embedder.model!r} returned an array of shape {made.shape} for "
            f"{len(texts)} texts; it must return one row per text."
        )
    if made.shape[1] != embedder.dimensions:
        raise DimensionMismatch(
            f"The embedder {embedder.model!r} announces {embedder.dimensions} dimensions and "
            f"returned {made.shape[1]}.",
            expected=embedder.dimensions,
            got=made.shape[1],
        )
    if not np.isfinite(made).all():
        raise EmbeddingError(
            f"The embedder {embedder.model!r} returned values that are not finite."
        )
    return made
