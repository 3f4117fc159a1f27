"""Documents with keys of their own, to be added and read."""

from __future__ import annotations

from typing import Any

from llmemory import AsyncMemory


async def only_document(memory: AsyncMemory, owner_id: str = "acme") -> Any:
    (listed,) = (await memory.list_documents(owner_id)).documents
    return await memory.get_document(owner_id, listed.document_id)


def items(keys: Any, text: str = "Text", owner: str = "acme") -> list[dict[str, Any]]:
    return [
        {
            "owner_id": owner,
            "document_name": f"Name {key}",
            "content": f"{text} of {key}.",
            "external_id": f"key {key}",
        }
        for key in keys
    ]
