"""The memory that the guide's classes are built around, and the server that it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from plugins.openai_server import OpenAIServer

from llmemory import AwordMemory

KEY = "sk-guide"


@pytest.fixture
def openai_server(openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIServer:
    """Have the settings name it."""
    monkeypatch.setenv("LLMEMORY_OPENAI_BASE_URL", openai_server.url)
    return openai_server


@pytest.fixture
async def memory(openai_server: OpenAIServer, database_url: str) -> AsyncIterator[AwordMemory]:
    memory = AwordMemory(connection_string=database_url, openai_api_key=KEY)
    await memory.initialize()
    yield memory
    await memory.close()
