"""Asking a function of the application for the context of each chunk that is embedded."""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from llmemory.concurrency.tasks import for_each
from llmemory.embedding.partial import MOST_REFUSALS, is_about_texts
from llmemory.embedding.text import ChunkToEmbed, TextsToEmbed
from llmemory.errors import ConfigurationError, ContextFailed, LLMemoryError
from llmemory.recent import Recent
from llmemory.settings import Settings

__all__ = ["ChunkContext", "Contexts", "PossibleTexts"]

ChunkContext: TypeAlias = Callable[[ChunkToEmbed], str | Awaitable[str | None] | None]


@dataclass(frozen=True, slots=True)
class PossibleTexts:
    """The texts to embed of those chunks whose context could be made.

    Attributes:
        texts: One for each of `numbers`.
        numbers: Those chunks, in order.
        errors: What the function met for others; those that nobody asked for have none.
        error: What is wrong with the function itself, if anything; it ended the work.
    """

    texts: Sequence[str]
    numbers: Sequence[int]
    errors: dict[int, LLMemoryError]
    error: LLMemoryError | None


class Contexts:
    """Makes the texts to embed, with contexts from a function if there is one.

    The function is called for several chunks at once, and not again for a chunk whose text,
    headings and document were the same, while that is among the last.

    Args:
        make: The function: a coroutine function, or another one, which a worker thread calls.
            None takes the one that the settings name, if any.
        settings: How chunks are embedded, how many calls run at once, how many contexts are kept.

    Raises:
        ConfigurationError: It cannot be imported or called.
    """

    def __init__(self, make: ChunkContext | None, settings: Settings) -> None:
        if make is None and settings.chunk_context is not None:
            make = _imported(settings.chunk_context)
        if make is not None and not callable(make):
            raise ConfigurationError("chunk_context must be a function that takes a ChunkToEmbed.")
        self._make = make
        self._with_headings = settings.embed_headings
        self._concurrency = settings.chunk_context_concurrency
        self._kept: Recent[bytes, str] = Recent(settings.chunk_context_cache_size)
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
            WeakKeyDictionary()
        )

    @property
    def are_made(self) -> bool:
        """Whether there is a function: then equal chunks of two documents differ."""
        return self._make is not None

    async def texts(self, chunks: Sequence[ChunkToEmbed]) -> Sequence[str]:
        """Return what the embedder is given for each of `chunks`.

        Raises:
            ContextFailed: The function failed, or returned something else than text.
            LLMemoryError: It raised this.
        """
        contexts = [""] * len(chunks) if self._make is not None else []

        async def make(number: int, key: bytes) -> None:
            contexts[number] = await self._context(chunks[number], key)

        await self._for_each(chunks, make)
        return TextsToEmbed(chunks, with_headings=self._with_headings, contexts=contexts)

    async def possible_texts(self, chunks: Sequence[ChunkToEmbed]) -> PossibleTexts:
        """Return the same, but for those of `chunks` whose context the function fails to make.

        One that fails for all that it is given is not given many.
        """
        if self._make is None:
            return PossibleTexts(await self.texts(chunks), range(len(chunks)), {}, None)
        contexts: dict[int, str] = {}
        errors: dict[int, LLMemoryError] = {}
        general: LLMemoryError | None = None

        async def make(number: int, key: bytes) -> None:
            nonlocal general
            try:
                contexts[number] = await self._context(chunks[number], key)
            except LLMemoryError as error:
                errors[number] = error
                if not is_about_texts(error) or (len(errors) >= MOST_REFUSALS and not contexts):
                    general = error
                    raise

        try:
            await self._for_each(chunks, make)
        except LLMemoryError:
            if general is None:
                raise
        numbers = sorted(contexts)
        texts = TextsToEmbed(
            [chunks[number] for number in numbers],
            with_headings=self._with_headings,
            contexts=[contexts[number] for number in numbers],
        )
        return PossibleTexts(texts, numbers, errors, general)

    async def _for_each(
        self, chunks: Sequence[ChunkToEmbed], make: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        if self._make is not None and chunks:
            at_once = min(self._concurrency, len(chunks))
            await for_each(_keys(chunks), lambda entry: make(*entry), at_once=at_once)

    async def _context(self, chunk: ChunkToEmbed, key: bytes) -> str:
        context = self._kept.get(key)
        if context is None:
            context = await self._made(chunk)
            self._kept.put(key, context)
        return context

    async def _made(self, chunk: ChunkToEmbed) -> str:
        assert self._make is not None
        turns = self._turns.setdefault(
            asyncio.get_running_loop(), anyio.CapacityLimiter(self._concurrency)
        )
        try:
            async with turns:
                made = (
                    self._make(chunk)
                    if _is_asynchronous(self._make)
                    else await anyio.to_thread.run_sync(self._make, chunk)
                )
                context = await made if inspect.isawaitable(made) else made
        except LLMemoryError:
            raise
        except Exception as error:
            raise ContextFailed(
                f"chunk_context failed with {type(error).__name__}; nothing was stored. See the "
                "cause above."
            ) from error
        if context is None:
            return ""
        if not isinstance(context, str):
            raise ContextFailed(
                f"chunk_context must return text or None, not {type(context).__name__}."
            )
        return context.strip()


def _imported(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    # Whatever importing an application's module raises: its words are not ours to repeat.
    except Exception as error:
        raise ConfigurationError(
            f"chunk_context {name!r} cannot be imported ({type(error).__name__}). Name a "
            "function as package.module:name; importing its module by itself shows what is wrong."
        ) from error


def _is_asynchronous(make: ChunkContext) -> bool:
    return inspect.iscoroutinefunction(make) or inspect.iscoroutinefunction(
        getattr(make, "__call__", None)  # noqa: B004
    )


def _keys(chunks: Sequence[ChunkToEmbed]) -> Iterator[tuple[int, bytes]]:
    """Yield a number for each chunk, and a hash of all that its context may depend on."""
    document, digest = None, b""
    for number, chunk in enumerate(chunks):
        # Chunks of one document follow each other and share its text.
        if chunk.document_content is not document:
            document = chunk.document_content
            digest = sha256(document.encode()).digest()
        parts = (chunk.owner_id, chunk.document_name, *chunk.headings, chunk.content)
        yield number, sha256(digest + "\0".join(parts).encode()).digest()
