"""OpenAIEmbedder and its connections: in several event loops, closed, and in a memory."""

from __future__ import annotations

import asyncio
import gc
import threading

import anyio
import pytest
from plugins.memories import MakeMemory
from plugins.openai_embedders import KEY, embedded_well, embedder_for
from plugins.openai_server import (
    OpenAIServer,
    slowly,
)
from pydantic import SecretStr

from llmemory import Settings
from llmemory.errors import (
    ClosedError,
    LLMemoryError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.direct("no database is asked")]


class TestEventLoops:
    def test_one_after_the_other(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server, batch_size=1)
        for number in range(3):
            assert asyncio.run(embedded_well(embedder, f"{number}.1", f"{number}.2"))
            # asyncio.run has closed the connections of its loop.
            assert openai_server.wait_for_connections(0) == 0
        gc.collect()

    def test_two_at_once(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server, batch_size=1, max_concurrency=4)
        results = []

        def run(name: int) -> None:
            texts = [f"{name}.{number}" for number in range(50)]
            results.append(asyncio.run(embedded_well(embedder, *texts)))

        threads = [threading.Thread(target=run, args=[name]) for name in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True, True]
        assert embedder.tokens_used == 100
        assert openai_server.wait_for_connections(0) == 0

    def test_an_embedder_that_is_forgotten_leaves_no_connection(
        self, openai_server: OpenAIServer
    ) -> None:
        async def use() -> int:
            assert await embedded_well(embedder_for(openai_server), "one")
            gc.collect()
            return await asyncio.to_thread(openai_server.wait_for_connections, 0)

        assert asyncio.run(use()) == 0

    def test_closing_reaches_the_other_loops(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server)
        used, done = threading.Event(), threading.Event()

        async def use_and_stay() -> None:
            assert await embedded_well(embedder, "one")
            used.set()
            await asyncio.to_thread(done.wait, 10)

        thread = threading.Thread(target=lambda: asyncio.run(use_and_stay()))
        thread.start()
        assert used.wait(5)
        assert openai_server.open_connections == 1
        asyncio.run(embedder.aclose())
        assert openai_server.wait_for_connections(0) == 0
        done.set()
        thread.join()

    async def test_closed(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server)
        assert await embedded_well(embedder, "one")
        await embedder.aclose()
        assert openai_server.wait_for_connections(0) == 0
        with pytest.raises(ClosedError):
            await embedder.embed(["two"], purpose="document")
        await embedder.aclose()

    async def test_closed_while_a_request_is_under_way(self, openai_server: OpenAIServer) -> None:
        openai_server.answers(slowly(silence_s=60))
        embedder = embedder_for(openai_server)
        caught: list[LLMemoryError] = []

        async def use() -> None:
            try:
                await embedder.embed(["one"], purpose="document")
            except LLMemoryError as error:
                caught.append(error)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(use)
                await anyio.sleep(0.2)
                await embedder.aclose()
        assert [type(error) for error in caught] == [ClosedError]

    async def test_cancelled(self, openai_server: OpenAIServer) -> None:
        embedder = embedder_for(openai_server, batch_size=1, max_concurrency=2)
        for _ in range(3):
            openai_server.script.clear()
            openai_server.answers(*[slowly(silence_s=30)] * 4)
            with anyio.move_on_after(0.2) as scope:
                await embedder.embed(["one", "two", "three"], purpose="document")
            assert scope.cancelled_caught
        openai_server.script.clear()
        assert await embedded_well(embedder, "one", "two", "three")
        await embedder.aclose()


async def test_with_a_memory(openai_server: OpenAIServer, make_memory: MakeMemory) -> None:
    embedder = embedder_for(openai_server)
    memory = make_memory(embedder=embedder)
    for name in ("apples", "pears"):
        await memory.add_document("owner", name, f"All about {name}.")
    for _ in range(2):
        hits = await memory.search("owner", "All about pears.", search_type="vector")
        assert hits[0].content == "All about pears."
    # Two documents and one query: the second time it came from the cache.
    assert len(openai_server.requests) == 3
    await memory.close()
    # It was passed, so that it stays its caller's.
    assert await embedded_well(embedder, "still open")
    await embedder.aclose()


async def test_an_embedder_that_the_settings_name_is_closed_with_the_memory(
    openai_server: OpenAIServer, make_memory: MakeMemory
) -> None:
    settings = Settings(
        openai_api_key=SecretStr(KEY), openai_base_url=openai_server.url, openai_dimensions=64
    )
    memory = make_memory(embedder=None, settings=settings)
    await memory.add_document("owner", "apples", "All about apples.")
    assert openai_server.open_connections == 1
    await memory.close()
    assert openai_server.wait_for_connections(0) == 0
    with pytest.raises(ClosedError):
        await memory.embedder.embed(["one"], purpose="document")
