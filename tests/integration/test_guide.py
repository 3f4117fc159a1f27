"""The classes that applications build around a memory, with the names that the guide gave it."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.guided import KEY, memory, openai_server
from plugins.office_files import pdf
from plugins.openai_server import OpenAIServer

from llmemory import (
    AwordMemory,
    DocumentAddResult,
    DocumentType,
    OpenAIEmbedder,
    SearchResult,
    SearchResultWithDocuments,
    SearchType,
)
from llmemory.files.reading import read_file

__all__ = ["memory", "openai_server"]

pytestmark = pytest.mark.anyio


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
