"""Reading files to add: a file's ending says how; nothing is guessed from its content."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import anyio.to_thread

from llmemory.errors import ValidationError
from llmemory.files import conversion
from llmemory.files.emails import parse_email
from llmemory.settings import Settings
from llmemory.types import DocumentType
from llmemory.validation.documents import NAMELESS_EMAIL

__all__ = [
    "FileContent",
    "external_id_of",
    "folder_suffixes",
    "name_of",
    "read_file",
    "read_in_thread",
]

_IN_FOLDERS = frozenset({".markdown", ".md", ".rst", ".text", ".txt"})

_MARKDOWN = {".md", ".markdown", ".mdown", ".mkd"}
_CODE = {
    ".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".java", ".js", ".jsx", ".kt", ".lua",
    ".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts",
    ".tsx", ".toml", ".yaml", ".yml", ".json", ".xml",
}  # fmt: skip
_UNREADABLE = {
    ".doc", ".epub", ".gif", ".gz", ".jpeg", ".jpg", ".msg", ".odt", ".png", ".ppt", ".rtf", ".xls",
    ".xlsx", ".zip",
}  # fmt: skip
_TYPES = {
    **dict.fromkeys(_MARKDOWN, DocumentType.MARKDOWN),
    **dict.fromkeys(_CODE, DocumentType.CODE),
    ".docx": DocumentType.DOCX,
    ".eml": DocumentType.EMAIL,
    ".htm": DocumentType.HTML,
    ".html": DocumentType.HTML,
    ".pdf": DocumentType.PDF,
    ".pptx": DocumentType.PRESENTATION,
}
_EXTRA = 'install what converts it: `pip install ".[files]"`'


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file holds, and what it says of itself.

    Attributes:
        content: Its text.
        document_type: As its ending tells.
        document_name: The file's name, or the subject of an e-mail.
        id_at_origin: The sender of an e-mail.
        document_date: The date of an e-mail.
        metadata: The headers of an e-mail.
    """

    content: str
    document_type: DocumentType
    document_name: str
    id_at_origin: str | None = None
    document_date: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def metadata_with(self, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the metadata with what the caller gave, which wins."""
        if not self.metadata or not isinstance(given, Mapping | None):
            return given
        return {**self.metadata, **(given or {})}


def read_file(path: str | PathLike[str], settings: Settings) -> FileContent:
    """Return a file's text and the type its ending tells.

    PDF, DOCX, PPTX and HTML become Markdown, and an e-mail its headers and text.

    Args:
        path: One of these, or a text in UTF-8, with or without a byte order mark.
        settings: The largest content, and the largest file to convert.

    Raises:
        ValidationError: There is no such file, it cannot be read or converted, is too large, no
            text in UTF-8 or of a kind that must be converted first.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in _UNREADABLE:
        raise _refused(file, f"is a {suffix} file; convert it to text or Markdown first")
    if suffix in conversion.CONVERTED or suffix == ".eml":
        data = _bytes_of(file, "max_file_bytes", settings.max_file_bytes)
        return _converted(file, data, suffix, settings)
    data = _bytes_of(file, "max_content_bytes", settings.max_content_bytes)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(
            file, f"is no text in UTF-8 (byte {error.start}); convert it to UTF-8 first"
        ) from None
    return FileContent(content, _TYPES.get(suffix, DocumentType.TEXT), name_of(file))


def _bytes_of(file: Path, setting: str, limit: int) -> bytes:
    try:
        status = file.stat()
        # A device or a pipe may never end.
        if not stat.S_ISREG(status.st_mode):
            raise _refused(file, "cannot be read: it is not a file")
        if status.st_size > limit:
            raise _refused(file, f"has {status.st_size} bytes, more than {setting} = {limit}")
        return file.read_bytes()
    except ValidationError:
        raise
    except (OSError, ValueError) as error:
        raise _refused(
            file, f"cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _converted(file: Path, data: bytes, suffix: str, settings: Settings) -> FileContent:
    document_type = _TYPES[suffix]
    try:
        if document_type is DocumentType.EMAIL:
            found = parse_email(data)
            return FileContent(
                found.content,
                document_type,
                (found.subject or NAMELESS_EMAIL)[: settings.max_name_length],
                id_at_origin=found.sender,
                document_date=found.date,
                metadata=found.metadata,
            )
        content = conversion.convert(data, suffix, max_bytes=settings.max_file_bytes)
    except ModuleNotFoundError as error:
        raise _refused(file, f"is a {suffix} file; {_EXTRA}") from error
    except conversion.TooLarge:
        limit = settings.max_file_bytes
        raise _refused(file, f"is unpacked larger than max_file_bytes = {limit}") from None
    except Exception as error:
        # Converters raise what they like; a message of theirs may quote the document.
        raise _refused(
            file, f"cannot be converted: it is broken, encrypted or no {suffix} file"
        ) from error
    if not content or content.isspace():
        raise _refused(file, "holds no text; pictures of text need text recognition first")
    return FileContent(content, document_type, name_of(file))


async def read_in_thread(path: str | PathLike[str], settings: Settings) -> FileContent:
    """Return what ``read_file`` returns, without holding up the event loop."""
    if not isinstance(path, str | PathLike) or not str(path) or "\0" in str(path):
        raise ValidationError("path must be the path of a file.", field="path")
    return await anyio.to_thread.run_sync(read_file, path, settings)


def folder_suffixes() -> frozenset[str]:
    """Return the endings of files that are taken from a folder, as far as they can be read."""
    if not conversion.is_installed():
        return _IN_FOLDERS
    return _IN_FOLDERS | conversion.CONVERTED | {".eml"}


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


def _refused(file: Path, problem: str) -> ValidationError:
    name = str(file).encode(errors="surrogateescape").decode(errors="replace")
    return ValidationError(f"{name} {problem}.", field="path")
