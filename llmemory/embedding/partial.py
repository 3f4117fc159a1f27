"""Embedding as many of some texts as the embedder will take, and saying why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from llmemory.concurrency.tasks import for_each
from llmemory.embedding.base import Embedder, concurrency_of, embed_checked
from llmemory.errors import (
    ContextFailed,
    DimensionMismatch,
    EmbeddingError,
    LLMemoryError,
    ProviderRejected,
    ProviderUnavailable,
    StorageError,
    ValidationError,
)
from llmemory.types import HalfVectors

__all__ = [
    "PartlyEmbedded",
    "embed_all_but_refused",
    "embed_what_is_possible",
    "is_about_texts",
    "reason_of",
    "shortened",
]

# So many single texts refused and none taken: the others are better tried among others.
MOST_REFUSALS = 16
# What no embedder refuses that works.
PLAIN_TEXT = "text"
# The key, the address or the account is wrong, whatever the text.
_UNRELATED_TO_TEXT = frozenset({401, 402, 403, 404, 429})


@dataclass
class PartlyEmbedded:
    """What became of some texts, each named by its number.

    Attributes:
        vectors: Arrays of shape ``(texts, dimensions)``, in the order of `numbers`.
        numbers: The texts that have a vector.
        errors: What the others met; those that nobody tried have none.
        error: What is wrong with the embedder itself, if anything; it ended the work.
    """

    vectors: list[HalfVectors] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    errors: dict[int, LLMemoryError] = field(default_factory=dict)
    error: LLMemoryError | None = None

    def renumbered(self, numbers: Sequence[int]) -> PartlyEmbedded:
        """Return the same, of texts that are some of others, with these numbers among them."""
        return PartlyEmbedded(
            self.vectors,
            [numbers[number] for number in self.numbers],
            {numbers[number]: error for number, error in self.errors.items()},
            self.error,
        )


async def embed_all_but_refused(embedder: Embedder, texts: Sequence[str]) -> PartlyEmbedded:
    """Embed documents' texts, at most a batch, but for those that the embedder refuses.

    Where it takes none of them, a plain text tells whose fault that is.

    Raises:
        EmbeddingError: The embedder does not answer, or refuses whatever it gets.
    """
    made = await embed_what_is_possible(embedder, texts, batch_size=len(texts))
    if made.error is None and not made.numbers:
        await embed_checked(embedder, [PLAIN_TEXT], purpose="document", batch_size=1)
        if len(made.errors) < len(texts):
            made = await embed_what_is_possible(
                embedder, texts, batch_size=len(texts), most_refusals=len(texts)
            )
    if made.error is not None:
        raise made.error
    return made


async def embed_what_is_possible(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    batch_size: int,
    most_refusals: int = MOST_REFUSALS,
) -> PartlyEmbedded:
    """Embed documents' texts in batches, and halve a batch that is refused.

    So a text that the embedder refuses is found, and costs no other its vector. An embedder that
    does not answer, or refuses whatever it gets, ends it.
    """
    found = PartlyEmbedded()
    starts = range(0, len(texts), batch_size)

    async def embed(start: int) -> None:
        to_do = [(start, min(start + batch_size, len(texts)))]
        while to_do:
            start, end = to_do.pop()
            try:
                made = await embed_checked(
                    embedder, texts[start:end], purpose="document", batch_size=batch_size
                )
            except (EmbeddingError, ValidationError) as error:
                if is_about_texts(error) and end - start > 1:
                    middle = (start + end) // 2
                    to_do += [(middle, end), (start, middle)]
                    continue
                found.errors.update(dict.fromkeys(range(start, end), error))
                if not is_about_texts(error):
                    found.error = error
                    raise
                if len(found.errors) >= most_refusals and not found.numbers:
                    raise
            else:
                found.vectors.append(made)
                found.numbers.extend(range(start, end))

    at_once = min(concurrency_of(embedder), len(starts))
    with suppress(EmbeddingError, ValidationError):
        await for_each(starts, embed, at_once=at_once)
    return found


def is_about_texts(error: LLMemoryError) -> bool:
    """Return whether `error` is about what was to be embedded, not about the embedder."""
    if isinstance(error, ProviderRejected):
        return error.status not in _UNRELATED_TO_TEXT
    return not isinstance(error, ProviderUnavailable | DimensionMismatch)


def reason_of(error: LLMemoryError) -> str:
    """Say what happened, to be stored.

    Not in the error's own words: an embedder that is not ours may quote the text, or its key.
    """
    facts = [type(error).__name__]
    if isinstance(error, ProviderRejected) and isinstance(error.status, int):
        facts.append(f"status {error.status}")
    if isinstance(error, StorageError) and error.sqlstate is not None:
        facts.append(f"SQLSTATE {error.sqlstate}")
    if isinstance(error, DimensionMismatch):
        facts.append(f"{error.expected} dimensions announced, {error.got} received")
    if error.__cause__ is not None:
        facts.append(f"caused by {type(error.__cause__).__name__}")
    return f"{_SENTENCES[_kind(error)]} ({', '.join(facts)})."


def shortened(positions: Sequence[int], most: int = 5) -> str:
    """Write the first of `positions`, and how many more there are."""
    shown = ", ".join(map(str, positions[:most]))
    return shown if len(positions) <= most else f"{shown} and {len(positions) - most} more"


_SENTENCES: dict[type[LLMemoryError], str] = {
    ProviderUnavailable: "The embedding provider did not answer",
    ProviderRejected: "The embedding provider refused the request",
    ContextFailed: "The function chunk_context failed",
    DimensionMismatch: "The embedder returned vectors of another length than it announces",
    EmbeddingError: "The embedder failed",
    ValidationError: "The embedder refused the text",
    StorageError: "The vectors could not be written",
    LLMemoryError: "It failed",
}


def _kind(error: LLMemoryError) -> type[LLMemoryError]:
    return next(kind for kind in _SENTENCES if isinstance(error, kind))
