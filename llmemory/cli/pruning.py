"""Removing the documents whose files are gone from a folder, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from llmemory.types import Document, DocumentType

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["Gone", "find_gone", "remove_gone"]

DOCUMENTS_A_PAGE = 1000
DELETED_AT_ONCE = 500


@dataclass
class Gone:
    """The documents of one folder whose files are gone.

    Attributes:
        folder: Its real path.
        external_ids: Paths that lead to nothing.
        kept: How many of its documents have their file still.
    """

    folder: Path
    external_ids: list[str] = field(default_factory=list)
    kept: int = 0

    @property
    def is_everything(self) -> bool:
        """Whether none would be left: more likely the folder's disk is not mounted."""
        return bool(self.external_ids) and not self.kept


async def find_gone(memory: AsyncMemory, owner: str, folders: Sequence[Path]) -> list[Gone]:
    """Return, for each folder, the owner's documents that were added from it and are gone.

    A document belongs to a folder if its external_id is a path below it and its name that of the
    file, or an e-mail's subject, which is what adding a file gives it: an application may use ids
    of its own that look like paths. One whose file is there but no longer chosen by the patterns
    is not gone, and neither is one whose file cannot be looked at.
    """
    below = {f"{folder.as_posix().rstrip('/')}/": Gone(folder) for folder in folders}
    offset = 0
    while below:
        limit = min(DOCUMENTS_A_PAGE, memory.settings.max_limit)
        page = await memory.list_documents(owner, limit=limit, offset=offset)
        keys = [
            document.external_id
            for document in page.documents
            if document.external_id is not None and _is_of_file(document, document.external_id)
        ]
        await anyio.to_thread.run_sync(_sort, keys, below)
        if not page.has_more:
            break
        offset += limit
    return list(below.values())


def _is_of_file(document: Document, external_id: str) -> bool:
    return document.document_type is DocumentType.EMAIL or document.document_name.endswith(
        external_id.rpartition("/")[2]
    )


def _sort(external_ids: Sequence[str], below: dict[str, Gone]) -> None:
    for external_id in external_ids:
        for prefix, gone in below.items():
            if external_id.startswith(prefix):
                if _is_gone(external_id):
                    gone.external_ids.append(external_id)
                else:
                    gone.kept += 1


def _is_gone(path: str) -> bool:
    try:
        Path(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


async def remove_gone(memory: AsyncMemory, owner: str, gone: Gone) -> int:
    """Delete these documents, unless their files have come back; return how many went."""
    removed = 0
    for start in range(0, len(gone.external_ids), DELETED_AT_ONCE):
        part = gone.external_ids[start : start + DELETED_AT_ONCE]
        still = [key for key in part if await anyio.to_thread.run_sync(_is_gone, key)]
        if still:
            removed += await memory.delete_documents(owner, external_ids=still)
    return removed
