"""The classes that applications build around a memory, with the names that the guide gave it."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.helpers import fetch
from pgdbm import AsyncDatabaseManager, DatabaseConfig
from plugins.office_files import pdf
from plugins.openai_server import OpenAIServer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmemory import (
    AwordMemory,
    ClosedError,
    DocumentAddResult,
    DocumentType,
    HashEmbedder,
    OpenAIEmbedder,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
    ValidationError,
)
from llmemory.files.reading import read_file

pytestmark = pytest.mark.anyio

KEY = "sk-guide"


@pytest.fixture
def openai_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        monkeypatch.setenv("LLMEMORY_OPENAI_BASE_URL", server.url)
        yield server


@pytest.fixture
async def memory(openai_server: OpenAIServer, database_url: str) -> AsyncIterator[AwordMemory]:
    memory = AwordMemory(connection_string=database_url, openai_api_key=KEY)
    await memory.initialize()
    yield memory
    await memory.close()


async def test_the_key_goes_to_the_endpoint(
    openai_server: OpenAIServer, memory: AwordMemory
) -> None:
    assert isinstance(memory.embedder, OpenAIEmbedder)
    await memory.add_document(
        owner_id="w1", document_name="Leave", content="25 days.", document_type=DocumentType.REPORT
    )
    assert [request.headers["authorization"] for request in openai_server.requests] == [
        f"Bearer {KEY}"
    ]


class TenantMemoryService:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def add_document(
        self, tenant_id: str, user_id: object, **options: Any
    ) -> DocumentAddResult:
        return await self.memory.add_document(
            owner_id=tenant_id,
            id_at_origin=user_id,  # type: ignore[arg-type]
            **options,
        )

    async def search(self, tenant_id: str, query: str) -> list[SearchResult]:
        return await self.memory.search(owner_id=tenant_id, query_text=query)


async def test_tenants_by_owner(memory: AwordMemory) -> None:
    service = TenantMemoryService(memory)
    for tenant, user in (("a", 7), ("b", "user-8"), ("b", None)):
        await service.add_document(
            tenant, user, document_name=f"Of {tenant}", content="The contract ends in May."
        )
    assert [hit.id_at_origin for hit in await service.search("a", "contract")] == ["7"]
    found = await service.search("b", "contract")
    assert {hit.id_at_origin for hit in found} == {"user-8", None}
    assert await service.search("c", "contract") == []


async def test_what_a_view_returns_as_json(memory: AwordMemory) -> None:
    from django.core.serializers.json import DjangoJSONEncoder

    for anonymous_or_user in (None, 12):
        added = await memory.add_document(
            owner_id="w1",
            id_at_origin=anonymous_or_user,
            document_name="Mail",
            document_type=DocumentType["EMAIL"],
            content="Text.",
            additional_metadata={"at": datetime(2025, 3, 1, tzinfo=UTC)},
        )
        assert set(added.dict()) >= {"document_id", "chunks_created", "processing_time_ms"}
    docs = await memory.list_documents(owner_id="w1", offset=0, limit=20)
    body = json.dumps(
        {
            "documents": [doc.dict() for doc in docs.documents],
            "total": docs.total_count,
            "has_more": docs.has_more,
        },
        cls=DjangoJSONEncoder,
    )
    first, second = json.loads(body)["documents"]
    assert (first["id_at_origin"], second["id_at_origin"]) == ("12", None)
    assert first["document_type"] == "email"
    assert first["metadata"] == {"at": "2025-03-01T00:00:00+00:00"}


class Storage:
    def __init__(self) -> None:
        self.files: list[Path] = []

    async def upload(self, path: Path) -> str:
        self.files.append(path)
        return f"blob://{path.name}"


class DocumentManager:
    def __init__(self, memory: AwordMemory, storage: Storage) -> None:
        self.memory = memory
        self.storage = storage

    async def extract(self, path: Path) -> str:
        return (await asyncio.to_thread(read_file, path, self.memory.settings)).content

    async def upload_document(
        self, workspace_id: str, user_id: str, file_path: Path, document_type: DocumentType
    ) -> dict[str, Any]:
        result = await self.memory.add_document(
            owner_id=workspace_id,
            id_at_origin=user_id,
            document_name=file_path.name,
            document_type=document_type,
            content=await self.extract(file_path),
            additional_metadata={
                "file_path": str(file_path),
                "file_size": (await asyncio.to_thread(file_path.stat)).st_size,
                "mime_type": mimetypes.guess_type(file_path)[0],
            },
        )
        url = await self.storage.upload(file_path)
        return {
            "document_id": result.document_id,
            "file_url": url,
            "chunks": result.chunks_created,
        }


async def test_a_document_manager(memory: AwordMemory, tmp_path: Path) -> None:
    manager = DocumentManager(memory, Storage())
    path = tmp_path / "contract.pdf"
    path.write_bytes(pdf(["The contract ends in May."]))
    uploaded = await manager.upload_document("w1", "u1", path, DocumentType.PDF)
    assert (uploaded["file_url"], uploaded["chunks"]) == ("blob://contract.pdf", 1)
    (hit,) = await memory.search(
        owner_id="w1", query_text="contract", metadata_filter={"mime_type": "application/pdf"}
    )
    assert hit.document_id == uploaded["document_id"]
    assert hit.metadata["file_size"] == path.stat().st_size


class KnowledgeBase:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def intelligent_search(
        self, workspace_id: str, query: str, filters: dict[str, Any] | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        results = await self.memory.search_with_documents(
            owner_id=workspace_id,
            query_text=query,
            search_type=SearchType.HYBRID,
            metadata_filter=filters,
            limit=20,
        )
        documents: dict[str, dict[str, Any]] = {}
        for result in results.results:
            entry = documents.setdefault(
                result.document_id,
                {
                    "document_name": result.document_name,
                    "document_type": result.document_type,
                    "chunks": [],
                },
            )
            entry["chunks"].append({"content": result.content, "score": result.score})
        return sorted(
            documents.items(),
            key=lambda item: max(chunk["score"] for chunk in item[1]["chunks"]),
            reverse=True,
        )


async def test_a_knowledge_base(memory: AwordMemory) -> None:
    await memory.add_document(
        owner_id="w1",
        document_name="Handbook",
        content="# Leave\n\nStaff have leave.\n\n# Travel\n\nTrains are booked.",
        document_type=DocumentType.MARKDOWN,
        additional_metadata={"team": "people"},
    )
    await memory.add_document(owner_id="w1", document_name="Note", content="Nothing on that.")
    base = KnowledgeBase(memory)
    ranked = await base.intelligent_search("w1", "leave")
    assert {entry["document_name"] for _, entry in ranked} == {"Handbook", "Note"}
    ((document_id, entry),) = await base.intelligent_search("w1", "leave", {"team": "people"})
    assert len(entry["chunks"]) == 2
    grouped = await memory.search_with_documents(owner_id="w1", query_text="leave", limit=20)
    assert [document.document_id for document in grouped.documents] == [name for name, _ in ranked]
    assert document_id in dict(ranked)


class EmailArchive:
    def __init__(self, memory: AwordMemory) -> None:
        self.memory = memory

    async def archive_email(
        self, workspace_id: str, email_data: dict[str, Any]
    ) -> DocumentAddResult:
        return await self.memory.add_document(
            owner_id=workspace_id,
            id_at_origin=email_data["from"],
            document_name=email_data["subject"],
            document_type=DocumentType.EMAIL,
            content=f"From: {email_data['from']}\n\n{email_data['body']}\n",
            additional_metadata={
                "from": email_data["from"],
                "to": email_data["to"],
                "cc": email_data.get("cc", []),
                "date": email_data["date"],
                "thread_id": email_data.get("thread_id"),
                "labels": email_data.get("labels", []),
                "has_attachments": bool(email_data.get("attachments")),
            },
        )

    async def search_emails(
        self,
        workspace_id: str,
        query: str,
        from_address: str | None = None,
        date_range: tuple[str, str] | None = None,
    ) -> SearchResultWithDocuments:
        metadata_filter = {}
        if from_address:
            metadata_filter["from"] = from_address
        results = await self.memory.search_with_documents(
            owner_id=workspace_id,
            query_text=query,
            search_type=SearchType.HYBRID,
            metadata_filter=metadata_filter,
        )
        if date_range:
            results.results = [
                result
                for result in results.results
                if date_range[0] <= result.metadata["date"] <= date_range[1]
            ]
        return results


async def test_an_email_archive(memory: AwordMemory) -> None:
    archive = EmailArchive(memory)
    for sender, subject, day in (("a@x.org", "Rooms", 3), ("b@x.org", None, 4), ("a@x.org", "", 9)):
        await archive.archive_email(
            "w1",
            {
                "from": sender,
                "to": ["c@x.org"],
                "subject": subject,
                "date": datetime(2025, 3, day, tzinfo=UTC),
                "body": "The rooms are too small.",
            },
        )
    everything = await archive.search_emails("w1", "rooms")
    names = sorted(result.document_name for result in everything.results)
    assert names == ["(no subject)", "(no subject)", "Rooms"]
    assert len((await archive.search_emails("w1", "rooms", "a@x.org")).results) == 2
    found = await archive.search_emails("w1", "rooms", "a@x.org", ("2025-03-01", "2025-03-05"))
    assert [result.document_name for result in found.results] == ["Rooms"]


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
