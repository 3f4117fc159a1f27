"""A Django project in one file, with synchronous and asynchronous views.

Uses the database that LLMEMORY_DATABASE_URL names, or else the embedded server:

    pip install ".[embedded,django]"
    python examples/django_app.py runserver

`python examples/django_app.py llmemory status` tells whether the tables fit. A project on
PostgreSQL would rather say LLMEMORY = {"DATABASE": "default"}. Check first who calls, and whether
they may use the workspace: this example trusts its callers.
"""

from __future__ import annotations

import json
import secrets
import sys

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views import View

from llmemory.django import get_async_memory, get_memory

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    INSTALLED_APPS=["llmemory.django"],
    LLMEMORY={},
    MIDDLEWARE=["llmemory.django.middleware.ErrorMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),
    USE_TZ=True,
)
django.setup()


class DocumentsView(View):
    def post(self, request: HttpRequest, workspace_id: str) -> HttpResponse:
        body = json.loads(request.body)
        result = get_memory().add_document(
            workspace_id,
            body.get("document_name"),
            body.get("content"),
            document_type=body.get("document_type", "general"),
            id_at_origin=request.headers.get("X-User-Id"),
            external_id=body.get("external_id"),
            additional_metadata=body.get("metadata"),
            document_date=body.get("document_date"),
        )
        return JsonResponse(result.model_dump(mode="json"))

    def get(self, request: HttpRequest, workspace_id: str) -> HttpResponse:
        page = get_memory().list_documents(
            workspace_id,
            document_type=request.GET.get("document_type"),
            offset=int(request.GET.get("offset", 0)),
            limit=int(request.GET.get("limit", 20)),
        )
        return JsonResponse(page.model_dump(mode="json"))


class DocumentView(View):
    async def get(self, request: HttpRequest, workspace_id: str, document_id: str) -> HttpResponse:
        document = await get_async_memory().get_document(workspace_id, document_id)
        return JsonResponse(document.model_dump(mode="json"))

    async def delete(
        self, request: HttpRequest, workspace_id: str, document_id: str
    ) -> HttpResponse:
        await get_async_memory().delete_document(workspace_id, document_id)
        return HttpResponse(status=204)


class SearchView(View):
    async def post(self, request: HttpRequest, workspace_id: str) -> HttpResponse:
        body = json.loads(request.body)
        found = await get_async_memory().search_with_documents(
            workspace_id,
            body.get("query"),
            search_type=body.get("search_type", "hybrid"),
            limit=body.get("limit", 10),
            metadata_filter=body.get("metadata_filter"),
        )
        return JsonResponse(found.model_dump(mode="json"))


async def health(request: HttpRequest) -> HttpResponse:
    found = await get_async_memory().health()
    return JsonResponse(found.model_dump(mode="json"), status=200 if found.healthy else 503)


urlpatterns = [
    path("workspaces/<workspace_id>/documents", DocumentsView.as_view()),
    path("workspaces/<workspace_id>/documents/<document_id>", DocumentView.as_view()),
    path("workspaces/<workspace_id>/search", SearchView.as_view()),
    path("health", health),
]
# For a server: uvicorn --app-dir examples django_app:application
application = ASGIHandler()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
