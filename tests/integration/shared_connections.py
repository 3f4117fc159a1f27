"""The connections that several memories of one test share, counted."""

from __future__ import annotations

import asyncio

import asyncpg

from llmemory import (
    AsyncMemory,
)


class Connections:
    """The server's connections of one test, counted over and over by name."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.most = 0

    async def __aenter__(self) -> Connections:
        self._watcher = await asyncpg.connect(self._url)
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._watcher.close()

    async def _watch(self) -> None:
        query = """SELECT count(*) FROM pg_stat_activity
            WHERE application_name = $1 AND datname = current_database()"""
        while True:
            self.most = max(self.most, await self._watcher.fetchval(query, self._name))
            await asyncio.sleep(0.005)


def url_named(url: str, name: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}application_name={name}"


async def add_and_list(memory: AsyncMemory, word: str = "leave") -> list[str]:
    await memory.add_document("acme", word, f"All about {word}.", additional_metadata={"of": word})
    hits = await memory.search("acme", word, metadata_filter={"of": word})
    assert all(hit.metadata == {"of": hit.document_name} for hit in hits)
    everything = await memory.list_documents("acme", limit=1000)
    return [document.document_name for document in everything.documents]
