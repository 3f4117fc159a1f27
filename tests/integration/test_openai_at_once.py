"""OpenAIEmbedder with many requests under way: what adds many texts asks for several at once."""

from __future__ import annotations

from typing import Any

import pytest
from plugins.memories import MakeMemory
from plugins.openai_embedders import embedder_for
from plugins.openai_server import OpenAIServer

from llmemory import AsyncMemory, MaintenanceProgress, Settings
from llmemory.documents import bulk
from llmemory.embedding.openai import OpenAIEmbedder
from llmemory.reembedding import chunk_walk

pytestmark = [pytest.mark.anyio, pytest.mark.direct("no database is asked")]


class TestManyRequestsAtOnce:
    """Each test hangs unless as many requests are under way as the embedder allows."""

    AT_ONCE = 6

    @pytest.fixture(params=[1, 20], ids=["of-many-batches", "of-one-batch"])
    def many(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> list[dict[str, Any]]:
        """Documents that make 20 requests, which stand for 20 batches or are all of one."""
        size = 4 * request.param
        monkeypatch.setattr(bulk, "BATCH_DOCUMENTS", size)
        monkeypatch.setattr(chunk_walk, "PAGE_CHUNKS", size)
        return [
            {"owner_id": f"owner {n % 2}", "document_name": str(n), "content": f"Text {n}."}
            for n in range(80)
        ]

    @pytest.fixture
    def allowed(self, openai_server: OpenAIServer) -> OpenAIEmbedder:
        openai_server.least_at_once = self.AT_ONCE
        return embedder_for(openai_server, max_concurrency=self.AT_ONCE)

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(embedding_batch_size=4)

    async def check(self, server: OpenAIServer, memory: AsyncMemory) -> None:
        assert server.most_at_once == self.AT_ONCE
        assert len(server.requests) == 20
        for owner in ("owner 0", "owner 1"):
            assert (await memory.get_statistics(owner)).pending_embeddings == 0
        hits = await memory.search("owner 1", "Text 33.", search_type="vector", limit=1)
        assert [hit.content for hit in hits] == ["Text 33."]
        await memory.embedder.aclose()  # type: ignore[attr-defined]

    async def test_adding(
        self,
        openai_server: OpenAIServer,
        make_memory: MakeMemory,
        allowed: OpenAIEmbedder,
        settings: Settings,
        many: list[dict[str, Any]],
    ) -> None:
        memory = make_memory(embedder=allowed, settings=settings)
        results = await memory.add_documents(iter(many))
        assert [result.document_name for result in results] == [str(n) for n in range(80)]
        await self.check(openai_server, memory)

    async def test_changing_the_model(
        self,
        openai_server: OpenAIServer,
        make_memory: MakeMemory,
        allowed: OpenAIEmbedder,
        settings: Settings,
        many: list[dict[str, Any]],
    ) -> None:
        # One connection keeps the run alone, one reads and writes.
        memory = make_memory(
            settings=settings.model_copy(update={"pool_size": 2, "pool_overflow": 0})
        )
        await memory.add_documents(many)
        seen: list[MaintenanceProgress] = []
        result = await memory.reembed(allowed, on_progress=seen.append)
        assert result.embeddings_created == 80
        filling = [(entry.done, entry.total) for entry in seen if entry.step == "embedding"]
        assert filling == sorted(filling)
        assert filling[-1] == (80, 80)
        await self.check(openai_server, memory)

    async def test_the_queue(
        self,
        openai_server: OpenAIServer,
        make_memory: MakeMemory,
        allowed: OpenAIEmbedder,
        settings: Settings,
        many: list[dict[str, Any]],
    ) -> None:
        memory = make_memory(embedder=allowed, settings=settings)
        await memory.add_documents(many, embed="later")
        assert await memory.process_pending_embeddings() == 80
        await self.check(openai_server, memory)
