"""Django: ``"llmemory.django"`` for INSTALLED_APPS, settings in ``LLMEMORY``.

::

    def search(request):
        hits = get_memory().search("acme", request.GET["query"])
        return JsonResponse({"results": [hit.model_dump(mode="json") for hit in hits]})

An asynchronous view says ``await get_async_memory().search(...)``.
"""

from __future__ import annotations

from llmemory.extras import importing

with importing("django"):
    from llmemory.django.memories import close_memories, get_async_memory, get_memory

__all__ = ["close_memories", "get_async_memory", "get_memory"]
