"""A web service: one memory for the application, a workspace of the path as the owner.

Uses the database that LLMEMORY_DATABASE_URL names, or else the embedded server:

    pip install ".[embedded,fastapi]" uvicorn
    uvicorn --app-dir examples fastapi_app:app

Check first who calls, and whether they may use the workspace: this example trusts its callers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, Response
from pydantic import BaseModel

from llmemory import (
    Document,
    DocumentAddResult,
    DocumentListResult,
    DocumentType,
    Health,
    SearchResultWithDocuments,
    SearchType,
)
from llmemory.fastapi import MemoryDependency, install_error_handlers, memory_lifespan

app = FastAPI(title="Documents", lifespan=memory_lifespan())
install_error_handlers(app)

UserId = Annotated[str, Header(alias="X-User-Id")]


class DocumentBody(BaseModel):
    document_name: str
    content: str
    document_type: DocumentType = DocumentType.GENERAL
    external_id: str | None = None
    metadata: dict[str, Any] | None = None
    document_date: datetime | None = None


class SearchBody(BaseModel):
    query: str
    search_type: SearchType = SearchType.HYBRID
    limit: int = 10
    metadata_filter: dict[str, Any] | None = None
    document_type: DocumentType | None = None


@app.post("/workspaces/{workspace_id}/documents")
async def add_document(
    workspace_id: str, body: DocumentBody, user_id: UserId, memory: MemoryDependency
) -> DocumentAddResult:
    return await memory.add_document(
        workspace_id,
        body.document_name,
        body.content,
        document_type=body.document_type,
        id_at_origin=user_id,
        external_id=body.external_id,
        additional_metadata=body.metadata,
        document_date=body.document_date,
    )


@app.get("/workspaces/{workspace_id}/documents")
async def list_documents(
    workspace_id: str,
    memory: MemoryDependency,
    document_type: DocumentType | None = None,
    offset: int = 0,
    limit: int = 20,
) -> DocumentListResult:
    return await memory.list_documents(
        workspace_id, document_type=document_type, offset=offset, limit=limit
    )


@app.get("/workspaces/{workspace_id}/documents/{document_id}")
async def get_document(workspace_id: str, document_id: str, memory: MemoryDependency) -> Document:
    return await memory.get_document(workspace_id, document_id)


@app.delete("/workspaces/{workspace_id}/documents/{document_id}", status_code=204)
async def delete_document(workspace_id: str, document_id: str, memory: MemoryDependency) -> None:
    await memory.delete_document(workspace_id, document_id)


@app.post("/workspaces/{workspace_id}/search")
async def search(
    workspace_id: str, body: SearchBody, memory: MemoryDependency
) -> SearchResultWithDocuments:
    return await memory.search_with_documents(
        workspace_id,
        body.query,
        search_type=body.search_type,
        limit=body.limit,
        metadata_filter=body.metadata_filter,
        document_type=body.document_type,
    )


@app.get("/health")
async def health(memory: MemoryDependency, response: Response) -> Health:
    found = await memory.health()
    response.status_code = 200 if found.healthy else 503
    return found
