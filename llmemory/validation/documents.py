"""Documents that callers pass: every value valid and in its stored form, or an error. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmemory.settings import Settings
from llmemory.text.languages import AUTO, detected_language
from llmemory.types import DocumentType, NewDocument
from llmemory.validation.metadata import checked_metadata, encoded_parts, is_blank, refuse
from llmemory.validation.values import (
    FIRST_MOMENT,
    LAST_MOMENT,
    checked_choice,
    checked_identifier,
    checked_language,
    checked_moment,
    checked_text,
    optional_identifier,
)

__all__ = ["CheckedDocument", "checked_document"]

NAMELESS_EMAIL = "(no subject)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedDocument:
    """A document that may be stored: every value valid and in its stored form."""

    owner_id: str
    document_name: str
    document_type: DocumentType
    content: str
    content_hash: bytes
    id_at_origin: str | None
    external_id: str | None
    metadata: dict[str, Any]
    document_date: datetime | None
    language: str


def checked_document(
    document: NewDocument | Mapping[str, Any], settings: Settings
) -> CheckedDocument:
    """Return `document` in its stored form.

    Raises:
        ValidationError: A value is missing, of the wrong type, empty, too long or not storable.
    """
    if isinstance(document, NewDocument):
        document = {name: getattr(document, name) for name in NewDocument.model_fields}
    elif not isinstance(document, Mapping):
        refuse("document", "must be a NewDocument or a mapping of add_document's arguments")
    unknown = set(document) - set(NewDocument.model_fields)
    if unknown:
        refuse("document", f"has unknown arguments: {', '.join(sorted(map(str, unknown)))}")
    document_type = checked_choice(
        document.get("document_type", DocumentType.GENERAL), DocumentType, "document_type"
    )
    for key in ("owner_id", "content"):
        if key not in document:
            refuse(key, "is missing: a document needs owner_id, document_name and content")
    content = checked_text(document["content"], "content")
    content_hash, size = _hash_and_size(content)
    if size > settings.max_content_bytes:
        refuse(
            "content",
            f"has {size} bytes, more than max_content_bytes = "
            f"{settings.max_content_bytes}; split it or raise the setting",
        )
    name = document.get("document_name")
    if document_type is DocumentType.EMAIL and (
        name is None or (isinstance(name, str) and is_blank(name))
    ):
        name = NAMELESS_EMAIL
    return CheckedDocument(
        owner_id=checked_identifier(document.get("owner_id"), "owner_id", settings),
        document_name=checked_text(name, "document_name", settings.max_name_length),
        document_type=document_type,
        content=content,
        content_hash=content_hash,
        id_at_origin=optional_identifier(document.get("id_at_origin"), "id_at_origin", settings),
        external_id=optional_identifier(document.get("external_id"), "external_id", settings),
        metadata=checked_metadata(document.get("additional_metadata"), settings),
        document_date=_document_date(document.get("document_date")),
        language=_document_language(
            checked_language(document.get("language"), AUTO) or settings.language,
            document_type,
            content,
        ),
    )


def _hash_and_size(text: str) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    for part in encoded_parts(text):
        digest.update(part)
        size += len(part)
    return digest.digest(), size


def _document_language(language: str, document_type: DocumentType, content: str) -> str:
    if language != AUTO:
        return language
    # Names and keywords are no language's words.
    return "simple" if document_type is DocumentType.CODE else detected_language(content)


def _document_date(value: object) -> datetime | None:
    moment = checked_moment(value, "document_date")
    if moment in {FIRST_MOMENT, LAST_MOMENT}:
        refuse(
            "document_date",
            "is too near the first or last year: it must lie between 0001-01-02 and 9999-12-30",
        )
    return moment
