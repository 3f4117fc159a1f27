"""The function that makes contexts: how often it is called, how many at once, what it may do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from llmemory import AsyncMemory, ChunkToEmbed, HashEmbedder, Settings
from llmemory.embedding.contexts import Contexts
from llmemory.errors import (
    ConfigurationError,
    ContextFailed,
    EmbeddingError,
    ProviderUnavailable,
)

pytestmark = pytest.mark.anyio


def chunks(*contents: str, **more: Any) -> list[ChunkToEmbed]:
    whole = "\n\n".join(contents)
    given = {"owner_id": "acme", "document_name": "Handbook", "headings": ("Leave",), **more}
    given.setdefault("document_content", whole)
    return [ChunkToEmbed(content=content, **given) for content in contents]


class Counting:
    """Makes contexts as an application would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, chunk: ChunkToEmbed) -> str:
        self.asked.append(chunk.content)
        return f"About {chunk.content}"


async def texts_of(contexts: Contexts, given: list[ChunkToEmbed]) -> list[str]:
    return list(await contexts.texts(given))


async def test_without_a_function_the_text_is_the_chunks() -> None:
    contexts = Contexts(None, Settings())
    assert not contexts.are_made
    assert await texts_of(contexts, chunks("one", "two")) == ["one", "two"]
    contexts = Contexts(None, Settings(embed_headings=True))
    assert await texts_of(contexts, chunks("one")) == ["Handbook > Leave\n\none"]


async def test_the_context_comes_first() -> None:
    given = chunks("one", "two")
    assert await texts_of(Contexts(Counting(), Settings()), given) == [
        "About one\n\none",
        "About two\n\ntwo",
    ]
    contexts = Contexts(Counting(), Settings(embed_headings=True))
    assert (await contexts.texts(given))[1:] == ["About two\n\nHandbook > Leave\n\ntwo"]


@pytest.mark.parametrize("context", [None, "", " \n"])
async def test_nothing_may_be_added(context: Any) -> None:
    contexts = Contexts(lambda chunk: context, Settings())
    assert await texts_of(contexts, chunks("one")) == ["one"]


async def test_it_is_not_asked_twice() -> None:
    make = Counting()
    contexts = Contexts(make, Settings())
    given = chunks("one", "two")
    assert await texts_of(contexts, given) == await texts_of(contexts, given)
    assert make.asked == ["one", "two"]


@pytest.mark.parametrize(
    "other",
    [
        {"owner_id": "other"},
        {"document_name": "Other"},
        {"headings": ()},
        {"headings": ("Leave", "one")},
        {"document_content": "one, and other things"},
    ],
)
async def test_another_place_has_a_context_of_its_own(other: dict[str, Any]) -> None:
    make = Counting()
    contexts = Contexts(make, Settings())
    for given in (chunks("one"), chunks("one", **other)):
        await contexts.texts(given)
    assert make.asked == ["one", "one"]


async def test_the_oldest_contexts_are_dropped() -> None:
    make = Counting()
    contexts = Contexts(make, Settings(chunk_context_cache_size=1))
    for content in ("one", "two", "two", "one"):
        await contexts.texts(chunks(content, document_content=""))
    assert make.asked == ["one", "two", "one"]


class Crowd:
    """Counts how many calls run at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1

    def blocking(self, chunk: ChunkToEmbed) -> str:
        assert threading.current_thread() is not threading.main_thread()
        self.enter()
        time.sleep(0.02)
        self.leave()
        return ""

    async def asynchronous(self, chunk: ChunkToEmbed) -> str:
        self.enter()
        await anyio.sleep(0.02)
        self.leave()
        return ""


@pytest.mark.parametrize("pick", [lambda crowd: crowd.blocking, lambda crowd: crowd.asynchronous])
async def test_calls_run_at_once_but_not_too_many(pick: Callable[[Crowd], Any]) -> None:
    crowd = Crowd()
    contexts = Contexts(pick(crowd), Settings(chunk_context_concurrency=3))
    async with anyio.create_task_group() as group:
        for call in range(2):
            group.start_soon(contexts.texts, chunks(*(f"{call}.{number}" for number in range(8))))
    assert crowd.most == 3


async def test_a_function_that_returns_a_coroutine() -> None:
    make = Counting()
    contexts = Contexts(lambda chunk: make(chunk), Settings())
    assert await texts_of(contexts, chunks("one")) == ["About one\n\none"]


@pytest.mark.parametrize(
    ("outcome", "error", "words"),
    [
        (RuntimeError("gone"), ContextFailed, "chunk_context failed with RuntimeError"),
        (ProviderUnavailable("busy"), ProviderUnavailable, "busy"),
        (7, ContextFailed, "text or None, not int"),
        (b"text", ContextFailed, "text or None, not bytes"),
    ],
)
async def test_a_failure_ends_it(outcome: Any, error: type[EmbeddingError], words: str) -> None:
    asked: list[str] = []

    def make(chunk: ChunkToEmbed) -> str:
        asked.append(chunk.content)
        if chunk.content == "two" and asked.count("two") == 1:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return "context"

    contexts = Contexts(make, Settings(chunk_context_concurrency=1))
    given = chunks("one", "two", "three")
    with pytest.raises(error, match=words) as caught:
        await contexts.texts(given)
    assert type(caught.value) is error
    if isinstance(outcome, RuntimeError):
        assert caught.value.__cause__ is outcome
    # What was made before is not asked for again.
    assert len(await contexts.texts(given)) == 3
    assert asked == ["one", "two", "two", "three"]


async def test_what_it_fails_for_costs_no_other_its_text() -> None:
    def make(chunk: ChunkToEmbed) -> str:
        if "bad" in chunk.content:
            raise RuntimeError(chunk.content)
        return "Context."

    possible = await Contexts(make, Settings()).possible_texts(chunks("one", "bad", "three"))
    assert (list(possible.numbers), possible.error) == ([0, 2], None)
    assert list(possible.texts) == ["Context.\n\none", "Context.\n\nthree"]
    assert {number: type(error) for number, error in possible.errors.items()} == {1: ContextFailed}


@pytest.mark.parametrize(("error", "calls"), [(RuntimeError, 16), (ProviderUnavailable, 1)])
async def test_one_that_always_fails_is_not_asked_for_all(
    error: type[Exception], calls: int
) -> None:
    asked: list[str] = []

    def make(chunk: ChunkToEmbed) -> str:
        asked.append(chunk.content)
        raise error("busy")

    contexts = Contexts(make, Settings(chunk_context_concurrency=1))
    possible = await contexts.possible_texts(chunks(*map(str, range(40))))
    assert (len(possible.texts), len(possible.errors), len(asked)) == (0, calls, calls)
    assert possible.error is possible.errors[calls - 1]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="chunk_context"):
        AsyncMemory("postgresql://host/app", embedder=HashEmbedder(), chunk_context="text")  # type: ignore[arg-type]
