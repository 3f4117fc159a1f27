"""Embedders of OpenAI's protocol, and the server on loopback that they ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmemory.embedding.openai import OpenAIEmbedder
from plugins.openai_server import (
    OpenAIServer,
    vector_of,
)

KEY = "sk-hunter2-very-secret"
TEXT = "a text nobody may read"
DIMENSIONS = 64


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    """A server that answers well until it is told otherwise."""
    with OpenAIServer() as server:
        yield server


def embedder_for(server: OpenAIServer, **options: Any) -> OpenAIEmbedder:
    """Return an embedder that asks this server, and does not wait long."""
    defaults: dict[str, Any] = {"dimensions": DIMENSIONS, "backoff_s": 0.02, "timeout_s": 5.0}
    return OpenAIEmbedder(KEY, base_url=server.url, **{**defaults, **options})


async def embedded_well(embedder: OpenAIEmbedder, *texts: str) -> bool:
    """Embed and compare with what the server gives to these texts."""
    vectors = await embedder.embed(texts, purpose="document")
    return np.array_equal(vectors, [vector_of(text, embedder.dimensions) for text in texts])
