"""A Django project in one file: memories made at import, used in sync and async views."""

from __future__ import annotations

import os
import sys
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from llmemory import AsyncMemory, HashEmbedder, Memory

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEBUG=False,
    INSTALLED_APPS=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests",
)

memory = AsyncMemory(embedder=HashEmbedder())
async_to_sync(memory.initialize)()
blocking_memory = Memory(embedder=HashEmbedder())


def answer(**content: Any) -> JsonResponse:
    return JsonResponse({"pid": os.getpid(), **content})


async def add(request: HttpRequest) -> JsonResponse:
    added = await memory.add_document("acme", request.GET["name"], "Staff have 25 days of leave.")
    return answer(document_id=str(added.document_id))


async def search(request: HttpRequest) -> JsonResponse:
    return answer(hits=len(await memory.search("acme", "leave")))


def sync_add(request: HttpRequest) -> JsonResponse:
    added = blocking_memory.add_document("acme", request.GET["name"], "25 days of leave.")
    return answer(document_id=str(added.document_id))


def sync_search(request: HttpRequest) -> JsonResponse:
    return answer(hits=len(async_to_sync(memory.search)("acme", "leave")))


urlpatterns = [
    path("add", add),
    path("search", search),
    path("sync/add", sync_add),
    path("sync/search", sync_search),
]
wsgi = get_wsgi_application()
asgi = get_asgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
