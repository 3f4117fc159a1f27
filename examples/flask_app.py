"""A web service without an event loop: an application factory, the workspace as the owner.

Uses the database that LLMEMORY_DATABASE_URL names, or else the embedded server:

    pip install ".[embedded,flask]"
    flask --app examples/flask_app.py run

`flask --app examples/flask_app.py llmemory status` tells whether the tables fit. Check first who
calls, and whether they may use the workspace: this example trusts its callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask, request
from flask.typing import ResponseReturnValue

from llmemory.flask import LLMemory, install_error_handlers

llmemory = LLMemory()
workspaces = Blueprint("workspaces", __name__, url_prefix="/workspaces/<workspace_id>")


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(config or {})
    llmemory.init_app(app)
    install_error_handlers(app)
    app.register_blueprint(workspaces)
    app.add_url_rule("/health", view_func=health)
    return app


@workspaces.post("/documents")
def add_document(workspace_id: str) -> ResponseReturnValue:
    body = request.get_json()
    result = llmemory.memory.add_document(
        workspace_id,
        body.get("document_name"),
        body.get("content"),
        document_type=body.get("document_type", "general"),
        id_at_origin=request.headers.get("X-User-Id"),
        external_id=body.get("external_id"),
        additional_metadata=body.get("metadata"),
        document_date=body.get("document_date"),
    )
    return result.model_dump(mode="json")


@workspaces.get("/documents")
def list_documents(workspace_id: str) -> ResponseReturnValue:
    page = llmemory.memory.list_documents(
        workspace_id,
        document_type=request.args.get("document_type"),
        offset=request.args.get("offset", 0, type=int),
        limit=request.args.get("limit", 20, type=int),
    )
    return page.model_dump(mode="json")


@workspaces.get("/documents/<document_id>")
def get_document(workspace_id: str, document_id: str) -> ResponseReturnValue:
    return llmemory.memory.get_document(workspace_id, document_id).model_dump(mode="json")


@workspaces.delete("/documents/<document_id>")
def delete_document(workspace_id: str, document_id: str) -> ResponseReturnValue:
    llmemory.memory.delete_document(workspace_id, document_id)
    return "", 204


@workspaces.post("/search")
def search(workspace_id: str) -> ResponseReturnValue:
    body = request.get_json()
    found = llmemory.memory.search_with_documents(
        workspace_id,
        body.get("query"),
        search_type=body.get("search_type", "hybrid"),
        limit=body.get("limit", 10),
        metadata_filter=body.get("metadata_filter"),
    )
    return found.model_dump(mode="json")


def health() -> ResponseReturnValue:
    found = llmemory.memory.health()
    return found.model_dump(mode="json"), 200 if found.healthy else 503
