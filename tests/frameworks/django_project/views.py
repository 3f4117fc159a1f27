"""The same views twice: synchronous and asynchronous."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views import View

from llmemory.django import get_async_memory, get_memory


class Documents(View):
    def post(self, request: HttpRequest, owner: str) -> JsonResponse:
        result = get_memory().add_document(owner, "Note", request.body.decode())
        return JsonResponse({"document_id": result.document_id})

    def get(self, request: HttpRequest, owner: str) -> JsonResponse:
        hits = get_memory().search(owner, request.GET["query"])
        return JsonResponse({"contents": [hit.content for hit in hits]})

    def delete(self, request: HttpRequest, owner: str) -> JsonResponse:
        get_memory().delete_document(owner, request.GET["id"])
        return JsonResponse({})


class AsyncDocuments(View):
    async def post(self, request: HttpRequest, owner: str) -> JsonResponse:
        result = await get_async_memory().add_document(owner, "Note", request.body.decode())
        return JsonResponse({"document_id": result.document_id})

    async def get(self, request: HttpRequest, owner: str) -> JsonResponse:
        hits = await get_async_memory().search(owner, request.GET["query"])
        return JsonResponse({"contents": [hit.content for hit in hits]})

    async def delete(self, request: HttpRequest, owner: str) -> JsonResponse:
        await get_async_memory().delete_document(owner, request.GET["id"])
        return JsonResponse({})


urlpatterns = [
    path("sync/<owner>", Documents.as_view()),
    path("async/<owner>", AsyncDocuments.as_view()),
]
