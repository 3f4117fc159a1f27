"""Calls that must be refused: what is wrong in them, and the whole promise about each."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from integration.helpers import chain, rows

from llmemory import (
    AsyncMemory,
    LLMemoryError,
    ValidationError,
)

SECRET = "hunter2-secret-word"
NUL = f"{SECRET}\0tail"
SURROGATE = f"{SECRET}\ud800tail"


class Unknown:
    """No JSON value."""


class Number(float):
    """A number that is not finite, in disguise."""


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"inner": inner}
    return inner


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


# name of the argument, value, words of the message
BAD_TEXTS: list[tuple[str, Any, str]] = [
    ("owner_id", "", "empty or blank"),
    ("owner_id", " \t\n", "empty or blank"),
    ("owner_id", None, "text, int or UUID"),
    ("owner_id", True, "text, int or UUID"),
    ("owner_id", 1.5, "text, int or UUID"),
    ("owner_id", b"acme", "text, int or UUID"),
    ("owner_id", ["acme"], "text, int or UUID"),
    ("owner_id", NUL, "NUL"),
    ("owner_id", SURROGATE, "surrogate"),
    ("owner_id", "o" * 513, "max_id_bytes"),
    ("owner_id", "ü" * 257, "max_id_bytes"),
    ("owner_id", 10**600, "max_id_bytes"),
    ("owner_id", 10**6000, "max_id_bytes"),
]


def named(cases: list[tuple[str, Any, str]]) -> list[Any]:
    return [
        pytest.param(name, value, words, id=f"{name}-{number}")
        for number, (name, value, words) in enumerate(cases)
    ]


async def refuses(
    call: Callable[[], Awaitable[Any]],
    url: str,
    words: str,
    error: type[LLMemoryError] = ValidationError,
    before: dict[str, int] | None = None,
) -> LLMemoryError:
    """Check the whole promise about one refused call."""
    before = rows(url) if before is None else before
    with pytest.raises(LLMemoryError) as caught:
        await call()
    assert type(caught.value) is error
    assert words in str(caught.value)
    # Long enough to say what to do, short enough to be read; never a secret or the content.
    assert 15 <= len(str(caught.value)) < 600
    assert_no_secret(caught.value)
    assert rows(url) == before
    return caught.value


def assert_no_secret(error: BaseException) -> None:
    """Check the error and all that a traceback would show with it."""
    for problem in chain(error):
        assert SECRET not in f"{problem} {problem!r}"


def good_document(**changes: Any) -> dict[str, Any]:
    return {
        "owner_id": "acme",
        "document_name": "Name",
        "content": "Some content of no importance.",
        **changes,
    }


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def changed(url: str, *, user: str | None = None, host: str | None = None, path: str = "") -> str:
    parts = urlsplit(url)
    name = user or parts.netloc.rpartition("@")[0] or "postgres"
    place = host or parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{name}@{place}", path=path or parts.path).geturl()


CALLS: list[Callable[[AsyncMemory], Any]] = [
    lambda memory: memory.initialize(),
    lambda memory: memory.add_document("acme", "a", "b"),
    lambda memory: memory.add_documents([good_document()]),
    lambda memory: memory.search("acme", "a"),
    lambda memory: memory.list_documents("acme"),
    lambda memory: memory.get_document("acme", uuid4()),
    lambda memory: memory.delete_owner("acme"),
]
