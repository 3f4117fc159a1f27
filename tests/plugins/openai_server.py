"""A server on loopback that speaks /v1/embeddings, and misbehaves when it is told to.

Run as a program it serves until its input ends: it is what benchmarks/openai_throughput.py asks.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np

from llmemory.types import Vectors

NATIVE_DIMENSIONS = 1536


@dataclass(frozen=True)
class Request:
    """What was asked, and when, in seconds of ``time.monotonic``."""

    target: str
    headers: Mapping[str, str]
    body: Any
    at_s: float

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        texts: list[str] = self.body["input"]
        return texts

    @property
    def dimensions(self) -> int:
        """How long the vectors shall be."""
        return int(self.body.get("dimensions", NATIVE_DIMENSIONS))


@dataclass(frozen=True)
class Reply:
    """What is answered, and how badly."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    silence_s: float = 0.0
    drip_s: float = 0.0
    is_cut: bool = False


Behaviour: TypeAlias = Callable[[Request], Reply]


def well(request: Request) -> Reply:
    """Answer as the API does."""
    return Reply(_encoded(_items(request), tokens=len(request.texts)))


def status(status: int, code: str | None = None, **headers: str) -> Behaviour:
    """Answer with a status, headers and an error that quotes what it must not."""

    def behave(request: Request) -> Reply:
        quoted = f"{request.headers.get('authorization')} {request.texts}"
        error = {"message": quoted, "type": quoted, "code": code or quoted, "param": None}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Reply(json.dumps({"error": error}).encode(), status, named)

    return behave


def raw(body: bytes) -> Behaviour:
    """Answer with status 200 and something else than the API."""
    return lambda request: Reply(body)


def altered(alter: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Behaviour:
    """Answer well, but for what `alter` does to the items."""
    return lambda request: Reply(_encoded(alter(_items(request)), tokens=1))


def slowly(*, silence_s: float = 0.0, drip_s: float = 0.0) -> Behaviour:
    """Answer well, after some silence or in a hundred pieces with pauses between them."""
    return lambda request: replace(well(request), silence_s=silence_s, drip_s=drip_s)


def cut(request: Request) -> Reply:
    """Hang up in the middle of the body."""
    return replace(well(request), is_cut=True)


def packed(vector: Vectors) -> str:
    """Return a vector as the API sends it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


@lru_cache(maxsize=10_000)
def vector_of(text: str, dimensions: int) -> Vectors:
    """Return the vector that this server gives to a text."""
    digest = np.frombuffer(blake2b(text.encode()).digest(), dtype=np.uint8)
    return np.resize(digest.astype(np.float32) - 127.5, dimensions)


@lru_cache(maxsize=10_000)
def _packed_vector_of(text: str, dimensions: int) -> str:
    return packed(vector_of(text, dimensions))


def _items(request: Request) -> list[dict[str, Any]]:
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed_vector_of(text, request.dimensions),
        }
        for index, text in enumerate(request.texts)
    ]


def _encoded(items: list[dict[str, Any]], *, tokens: int) -> bytes:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": items, "usage": usage}).encode()


class OpenAIServer:
    """The server, in a thread with an event loop of its own.

    Args:
        latency_s: Seconds before each answer.
        connections: How many are allowed; further ones must wait for one of them to end.
        port: Where to listen; 0 takes a free port.

    Attributes:
        requests: What was asked so far.
        script: How the next requests are answered, one each; the rest is answered well.
        most_at_once: Most requests that were worked on at the same time.
        open_connections: Connections now.
        least_at_once: So many requests must be worked on before the first of them is answered.
    """

    def __init__(self, *, latency_s: float = 0.0, connections: int = 1000, port: int = 0) -> None:
        self._latency_s = latency_s
        self._connections = connections
        self.requests: list[Request] = []
        self.script: deque[Behaviour] = deque()
        self.most_at_once = 0
        self.open_connections = 0
        self.least_at_once = 0
        self._at_once = 0
        self._port = port
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        """What to pass as ``base_url``."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        if not self._listening.wait(10):
            raise TimeoutError("the server does not listen")
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def answers(self, *behaviours: Behaviour) -> None:
        """Answer the next requests like this, one each."""
        self.script.extend(behaviours)

    def wait_for_connections(self, count: int) -> int:
        """Return how many connections are open, as soon as that is `count` or after 5 s."""
        deadline = time.monotonic() + 5
        while self.open_connections != count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.open_connections

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._allowed = asyncio.Semaphore(self._connections)
        self._are_together = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, limit=2**24)
        self._port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            # The client hangs up, or the test is over.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                async with self._allowed:
                    while await self._answer(await _read(reader), writer):
                        pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        self.requests.append(request)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            behave = self.script.popleft() if self.script else well
            reply = behave(request)
            if self._at_once >= self.least_at_once:
                self._are_together.set()
            await self._are_together.wait()
            await asyncio.sleep(self._latency_s + reply.silence_s)
            await _write(reply, writer)
            return not reply.is_cut
        finally:
            self._at_once -= 1


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers["content-length"]))
    return Request(first.split()[1], headers, json.loads(body), time.monotonic())


async def _write(reply: Reply, writer: asyncio.StreamWriter) -> None:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(reply.body)),
        **reply.headers,
    }
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {headers[name]}" for name in headers)]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    body = reply.body[: len(reply.body) // 2] if reply.is_cut else reply.body
    if reply.drip_s:
        step = len(body) // 100 + 1
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            await asyncio.sleep(reply.drip_s)
    else:
        writer.write(body)
        await writer.drain()


def main() -> None:
    """Serve until the input ends; print the URL first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-s", type=float, default=0.05)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with OpenAIServer(**vars(arguments)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
