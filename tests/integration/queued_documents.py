"""Documents that are left for later, their jobs, and an embedder that refuses some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from integration.helpers import (
    fetch,
)

from llmemory import (
    AsyncMemory,
    HashEmbedder,
    ProviderRejected,
    Settings,
)

EAGER = Settings(job_poll_s=0.05)
SECRET = "hunter2"


class PickyEmbedder(HashEmbedder):
    """Refuses every call that has a text with one of some words in it, and quotes it."""

    def __init__(self, *words: str, error: type[Exception] = ProviderRejected) -> None:
        super().__init__()
        self.words = words
        self.error = error
        self.batches: list[list[str]] = []

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        self.batches.append(list(texts))
        for text in texts:
            if any(word in text for word in self.words):
                raise self.error(f"cannot take {text!r} with key {SECRET}")
        return await super().embed(texts, purpose=purpose)


async def leave(memory: AsyncMemory, owner: str, *contents: str) -> list[str]:
    """Add documents for later; return their ids."""
    return [
        (await memory.add_document(owner, "name", content, embed="later")).document_id
        for content in contents
    ]


def jobs(url: str, columns: str = "state, attempts, last_error") -> list[tuple[Any, ...]]:
    return fetch(url, f"SELECT {columns} FROM llmemory.embedding_jobs ORDER BY created_at, job_id")


def due(url: str) -> bool:
    return any(is_due for (is_due,) in jobs(url, "available_at <= now()"))


def make_due(url: str) -> None:
    """Let every pause be over."""
    fetch(url, "UPDATE llmemory.embedding_jobs SET available_at = now() - interval '1 hour'")
