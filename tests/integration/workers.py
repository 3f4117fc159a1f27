"""Workers as processes, and the embedding server that they ask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from plugins import openai_server
from plugins.command_line import command, environment
from plugins.openai_server import OpenAIServer, vector_of

from llmemory import Memory, OpenAIEmbedder

DIMENSIONS = 8
KEY = "sk-hunter2"
READY = "Waiting for documents"


class ExpectedVectors:
    """Gives the vectors that the server gives, without asking it."""

    model = "text-embedding-3-small"
    dimensions = DIMENSIONS

    async def embed(self, texts: Sequence[str], *, purpose: Any) -> Any:
        return np.stack([vector_of(text, DIMENSIONS) for text in texts])


def openai_embedder(url: str, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(KEY, base_url=url, dimensions=DIMENSIONS, **options)


def asking(server: OpenAIServer, **variables: str) -> dict[str, str]:
    """Return the variables of a process that asks `server`."""
    return {
        "LLMEMORY_EMBEDDER": "openai",
        "LLMEMORY_OPENAI_API_KEY": KEY,
        "LLMEMORY_OPENAI_BASE_URL": server.url,
        "LLMEMORY_OPENAI_DIMENSIONS": str(DIMENSIONS),
        **variables,
    }


@contextmanager
def started_worker(url: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a worker; when the block ends it is killed, if it runs still."""
    process = subprocess.Popen(
        command("worker", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(url, **variables),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


FORKED = """
import os, sys
import llmemory.core
from llmemory.cli import main
for _ in range(int(sys.argv.pop(1)) - 1):
    if os.fork() == 0:
        break
sys.exit(main())
"""


@contextmanager
def forked_workers(count: int, url: str, **variables: str) -> Iterator[None]:
    """Start several workers that begin at the same moment; kill them when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(count), "worker"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(url, **variables),
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(READY), line + process.stderr.read()


@contextmanager
def started_openai_server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the embedding server as a process of its own; give its URL with it."""
    program = Path(openai_server.__file__)
    process = subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(None),
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def left(url: str, embedder: Any, *contents: str, owner: str = "acme") -> None:
    """Leave documents, named like their text, for workers."""
    with Memory(url, embedder=embedder) as memory:
        memory.add_documents(
            [
                {
                    "owner_id": owner,
                    "document_name": "name",
                    "content": content,
                    "external_id": content[:20],
                }
                for content in contents
            ],
            embed="later",
        )
