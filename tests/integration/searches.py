"""Documents that searches for the word "leave" find, and the names of what they found."""

from __future__ import annotations

from typing import Any

import pytest

from llmemory import (
    AsyncMemory,
    SearchType,
)

TYPES = pytest.mark.parametrize("search_type", list(SearchType))


async def names(memory: AsyncMemory, owner_id: str = "acme", **search: Any) -> list[str]:
    search.setdefault("query_text", "leave")
    return [hit.document_name for hit in await memory.search(owner_id, **search)]


async def fill(memory: AsyncMemory, **documents: dict[str, Any]) -> None:
    """Add documents that all match the word "leave", by their names."""
    await memory.add_documents(
        {
            "owner_id": "acme",
            "document_name": name,
            "content": f"Leave of absence: {name}.",
            **details,
        }
        for name, details in documents.items()
    )
