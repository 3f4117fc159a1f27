"""The guide's classes for operation: pools, caches, batches, access, tenants and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from integration.guided import KEY, memory, openai_server
from integration.helpers import fetch
from pgdbm import AsyncDatabaseManager, DatabaseConfig
from plugins.openai_server import OpenAIServer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmemory import (
    AwordMemory,
    ClosedError,
    DocumentAddResult,
    DocumentType,
    HashEmbedder,
    SearchResult,
    SearchType,
    ValidationError,
)

__all__ = ["memory", "openai_server"]

pytestmark = pytest.mark.anyio


class SharedMemoryPool:
    def __init__(self, connection_string: str) -> None:
        self.connection_string = connection_string
        self.pool: Any = None
        self.services: dict[str, AwordMemory] = {}

    async def initialize(self) -> None:
        config = DatabaseConfig(connection_string=self.connection_string)
        self.pool = await AsyncDatabaseManager.create_shared_pool(config)

    def get_service(self, schema: str) -> AwordMemory:
        if schema not in self.services:
            db_manager = AsyncDatabaseManager(pool=self.pool, schema=schema)
            self.services[schema] = AwordMemory.from_db_manager(db_manager)
        return self.services[schema]

    async def close(self) -> None:
        for service in self.services.values():
            await service.close()
        await self.pool.close()


@pytest.mark.direct("pgdbm sends parameters that PgBouncer refuses")
async def test_a_shared_pool(
    openai_server: OpenAIServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMEMORY_OPENAI_API_KEY", KEY)
    pool_manager = SharedMemoryPool(database_url)
    await pool_manager.initialize()
    users, documents = map(pool_manager.get_service, ("users", "documents"))
    await users.initialize()
    await documents.initialize()
    await users.add_document(owner_id="w1", document_name="Ada", content="Ada writes programs.")
    assert len(await users.search(owner_id="w1", query_text="programs")) == 1
    assert await documents.search(owner_id="w1", query_text="programs") == []
    assert pool_manager.pool.get_idle_size() == pool_manager.pool.get_size()
    await pool_manager.close()
    assert fetch(database_url, "SELECT count(*) FROM users.documents") == [(1,)]


class CachedMemoryService:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory
        self._cache: dict[str, list[SearchResult]] = {}

    async def search_cached(
        self, owner_id: str, query_text: str, **options: Any
    ) -> list[SearchResult]:
        key = f"{owner_id}:{query_text}:{sorted(options.items())}"
        if key not in self._cache:
            self._cache[key] = await self.memory.search(
                owner_id=owner_id, query_text=query_text, **options
            )
        return self._cache[key]


async def test_a_cached_search(memory: AwordMemory) -> None:
    await memory.add_document(owner_id="w1", document_name="Leave", content="25 days of leave.")
    service = CachedMemoryService(memory)
    first = await service.search_cached("w1", "leave", limit=5, search_type=SearchType.TEXT)
    assert len(first) == 1
    assert await service.search_cached("w1", "leave", limit=5, search_type=SearchType.TEXT) is first
    assert await service.search_cached("w2", "leave", limit=5) == []


class BatchProcessor:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def batch_add_documents(
        self, workspace_id: str, documents: list[dict[str, Any]], batch_size: int = 10
    ) -> list[DocumentAddResult]:
        results: list[DocumentAddResult] = []
        for start in range(0, len(documents), batch_size):
            calls = [
                self.memory.add_document(owner_id=workspace_id, **document)
                for document in documents[start : start + batch_size]
            ]
            results.extend(await asyncio.gather(*calls))
        return results


async def test_a_batch(memory: AwordMemory) -> None:
    documents = [
        {"document_name": f"Note {number}", "content": f"Room {number} is free."}
        for number in range(35)
    ]
    results = await BatchProcessor(memory).batch_add_documents("w1", documents)
    assert [result.document_name for result in results] == [f"Note {n}" for n in range(35)]
    assert (await memory.get_statistics("w1")).document_count == 35


class SecureMemoryService:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def user_has_workspace_access(self, user_id: str, workspace_id: str) -> bool:
        return (user_id, workspace_id) == ("u1", "w1")

    def sanitize_filename(self, name: str) -> str:
        return name.replace("/", "_")

    async def add_document_secure(
        self, workspace_id: str, user_id: str, document_name: str, content: str, **options: Any
    ) -> DocumentAddResult:
        if not await self.user_has_workspace_access(user_id, workspace_id):
            raise PermissionError("Access denied")
        if len(content) > 1_000_000:
            raise ValidationError("Document too large")
        return await self.memory.add_document(
            owner_id=workspace_id,
            id_at_origin=user_id,
            document_name=self.sanitize_filename(document_name),
            content=content,
            **options,
        )


async def test_a_secure_service(memory: AwordMemory) -> None:
    service = SecureMemoryService(memory)
    added = await service.add_document_secure("w1", "u1", "../a.txt", "Text.")
    assert added.document_name == ".._a.txt"
    with pytest.raises(PermissionError):
        await service.add_document_secure("w2", "u1", "a", "Text.")
    with pytest.raises(ValidationError, match="Document too large"):
        await service.add_document_secure("w1", "u1", "a", "x" * 1_000_001)
    assert (await memory.list_documents("w1")).total_count == 1


class TenantIsolatedMemory:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def get_tenant_memory(self, tenant_id: str) -> AwordMemory:
        return AwordMemory(pool=self.memory.pool, schema=f"tenant_{tenant_id}")


async def test_a_schema_for_each_tenant(memory: AwordMemory, database_url: str) -> None:
    isolated = TenantIsolatedMemory(memory)
    tenants = [await isolated.get_tenant_memory(name) for name in ("a", "b")]
    for tenant in tenants:
        assert tenant.embedder is memory.embedder
        await tenant.initialize()
        await tenant.add_document(owner_id="w1", document_name=tenant.schema, content="A secret.")
    for tenant in tenants:
        (hit,) = await tenant.search(owner_id="w1", query_text="secret")
        assert hit.document_name == tenant.schema
        await tenant.close()
    assert await memory.search(owner_id="w1", query_text="secret") == []
    with pytest.raises(ClosedError):
        await tenants[0].search(owner_id="w1", query_text="secret")
    assert fetch(database_url, "SELECT count(*) FROM tenant_a.documents") == [(1,)]


class MonitoredMemory:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory
        self.registry = CollectorRegistry()
        self.additions = Counter(
            "memory_documents_added_total",
            "Documents added",
            ["workspace_id", "document_type"],
            registry=self.registry,
        )
        self.durations = Histogram(
            "memory_search_duration_seconds",
            "Seconds of a search",
            ["workspace_id", "search_type"],
            registry=self.registry,
        )
        self.documents = Gauge(
            "memory_active_documents", "Documents", ["workspace_id"], registry=self.registry
        )

    async def add_document(self, **options: Any) -> DocumentAddResult:
        result = await self.memory.add_document(**options)
        self.additions.labels(
            workspace_id=options["owner_id"], document_type=options["document_type"].value
        ).inc()
        statistics = await self.memory.get_statistics(options["owner_id"])
        self.documents.labels(options["owner_id"]).set(statistics.document_count)
        return result

    async def search(self, **options: Any) -> list[SearchResult]:
        labels = {
            "workspace_id": options["owner_id"],
            "search_type": options.get("search_type", "hybrid"),
        }
        with self.durations.labels(**labels).time():
            return await self.memory.search(**options)


async def test_metrics(memory: AwordMemory) -> None:
    monitored = MonitoredMemory(memory)
    for _ in range(2):
        await monitored.add_document(
            owner_id="w1", document_name="Note", content="Text.", document_type=DocumentType.TEXT
        )
    await monitored.search(owner_id="w1", query_text="text")
    await monitored.search(owner_id="w1", query_text="text", search_type=SearchType.TEXT)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in monitored.registry.collect()
        for sample in metric.samples
    }
    assert values["memory_documents_added_total", "w1", "text"] == 2
    assert values["memory_active_documents", "w1"] == 2
    for kind in ("hybrid", "text"):
        assert values["memory_search_duration_seconds_count", "w1", kind] == 1


def test_initialized_at_import_and_used_in_the_loops_of_requests(database_url: str) -> None:
    from asgiref.sync import async_to_sync

    memory = AwordMemory(connection_string=database_url, embedder=HashEmbedder())
    async_to_sync(memory.initialize)()
    tenant = AwordMemory(pool=memory.pool, schema="tenant_1")
    for number in range(1, 4):
        for one in (memory, tenant):
            async_to_sync(one.add_document)("w1", f"Note {number}", "Text.")
            page = async_to_sync(one.list_documents)("w1")
            assert page.total_count == number
    async_to_sync(memory.close)()
