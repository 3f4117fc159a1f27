"""Reading files to add. Text and Markdown; nothing is guessed from the content."""

from __future__ import annotations

import hashlib
import stat
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from llmemory.errors import ValidationError
from llmemory.settings import Settings
from llmemory.types import DocumentType

__all__ = ["FileContent", "external_id_of", "name_of", "read_file", "read_in_thread"]

_MARKDOWN = {".md", ".markdown", ".mdown", ".mkd"}
_CODE = {
    ".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".java", ".js", ".jsx", ".kt", ".lua",
    ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts",
    ".tsx", ".toml", ".yaml", ".yml", ".json", ".xml",
}  # fmt: skip
_UNREADABLE = {
    ".doc", ".docx", ".epub", ".eml", ".gif", ".gz", ".jpeg", ".jpg", ".msg", ".odt", ".pdf",
    ".png", ".ppt", ".pptx", ".rtf", ".xls", ".xlsx", ".zip",
}  # fmt: skip


class FileContent(NamedTuple):
    """What a file holds."""

    content: str
    document_type: DocumentType


def read_file(path: str | PathLike[str], settings: Settings) -> FileContent:
    """Return a text file's content and the type its ending tells.

    Args:
        path: A file in UTF-8, with or without a byte order mark.
        settings: The largest content.

    Raises:
        ValidationError: There is no such file, it cannot be read, is too large, no text in UTF-8
            or of a kind that must be converted first.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in _UNREADABLE:
        raise _refused(file, f"is a {suffix} file; convert it to text or Markdown first")
    try:
        status = file.stat()
        # A device or a pipe may never end.
        if not stat.S_ISREG(status.st_mode):
            raise _refused(file, "cannot be read: it is not a file")
        if status.st_size > settings.max_content_bytes:
            raise _refused(
                file,
                f"has {status.st_size} bytes, more than max_content_bytes = "
                f"{settings.max_content_bytes}",
            )
        content = file.read_bytes().decode("utf-8-sig")
    except ValidationError:
        raise
    except UnicodeDecodeError as error:
        raise _refused(
            file, f"is no text in UTF-8 (byte {error.start}); convert it to UTF-8 first"
        ) from None
    except (OSError, ValueError) as error:
        raise _refused(
            file, f"cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    return FileContent(content, _document_type(suffix))


async def read_in_thread(path: str | PathLike[str], settings: Settings) -> FileContent:
    """Return what ``read_file`` returns, without holding up the event loop."""
    if not isinstance(path, str | PathLike) or not str(path) or "\0" in str(path):
        raise ValidationError("path must be the path of a file.", field="path")
    return await anyio.to_thread.run_sync(read_file, path, settings)


def name_of(path: str | PathLike[str]) -> str:
    """Return the file's name; bytes that are no UTF-8 show as replacement characters."""
    return Path(path).name.encode(errors="surrogateescape").decode(errors="replace")


def external_id_of(path: str | PathLike[str], settings: Settings) -> str:
    """Return the id by which adding the same path again replaces: the absolute path."""
    absolute = Path(path).resolve().as_posix()
    encoded = absolute.encode(errors="surrogateescape")
    if len(encoded) <= settings.max_id_bytes and absolute.isprintable():
        return absolute
    return "sha256:" + hashlib.sha256(encoded).hexdigest()


def _document_type(suffix: str) -> DocumentType:
    if suffix in _MARKDOWN:
        return DocumentType.MARKDOWN
    if suffix in {".html", ".htm"}:
        return DocumentType.HTML
    return DocumentType.CODE if suffix in _CODE else DocumentType.TEXT


def _refused(file: Path, problem: str) -> ValidationError:
    name = str(file).encode(errors="surrogateescape").decode(errors="replace")
    return ValidationError(f"{name} {problem}.", field="path")
