"""E-mail messages as documents, parsed by the standard library."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage, MIMEPart
from email.policy import default as modern
from typing import Any

from llmemory.files.conversion import cleaned, html_to_markdown

__all__ = ["Email", "parse_email"]

_SHOWN = ("From", "To", "Cc", "Subject", "Date")


@dataclass(frozen=True, slots=True)
class Email:
    """What a message says.

    Attributes:
        content: Its main headers, its text and the names of its attachments.
        subject: None if it has none.
        sender: The address it comes from, in lower case, or None.
        date: When it was written, or None.
        metadata: ``from``, ``to``, ``cc`` (addresses in lower case), ``date`` (ISO 8601),
            ``subject``, ``message_id`` and ``attachments`` (names), where it has them.
    """

    content: str
    subject: str | None
    sender: str | None
    date: datetime | None
    metadata: dict[str, Any]


def parse_email(raw: bytes) -> Email:
    """Return what a raw message (RFC 5322) says.

    The text is its plain part, or else its HTML part as Markdown.

    Raises:
        ValueError: It is no e-mail message.
        ModuleNotFoundError: It has HTML only, and the extra ``files`` is not installed.
    """
    message = message_from_bytes(raw, policy=modern)
    if not any(name in message for name in ("from", "date", "subject", "message-id")):
        raise ValueError("no header of an e-mail message")
    subject = _header(message, "subject")
    sender = next(iter(_addresses(message, "from")), None)
    date = _date(message)
    attachments = [cleaned(part.get_filename() or "unnamed") for part in _attachments(message)]
    found = {
        "from": sender,
        "to": _addresses(message, "to"),
        "cc": _addresses(message, "cc"),
        "date": None if date is None else date.isoformat(),
        "subject": subject,
        "message_id": _header(message, "message-id"),
        "attachments": attachments,
    }
    shown = [f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))]
    listed = [f"Attachments: {', '.join(attachments)}"] if attachments else []
    parts = ["\n".join(shown), _text(message), *listed]
    return Email(
        content="\n\n".join(part for part in parts if part),
        subject=subject,
        sender=sender,
        date=date,
        metadata={name: value for name, value in found.items() if value},
    )


def _header(message: EmailMessage, name: str) -> str | None:
    # The parser of the standard library raises errors of many kinds for headers that are broken.
    with suppress(Exception):
        return " ".join(cleaned(str(message.get(name, ""))).split()) or None
    return None


def _addresses(message: EmailMessage, name: str) -> list[str]:
    with suppress(Exception):
        headers = message.get_all(name, [])
        found = (address.addr_spec for header in headers for address in header.addresses)
        return [cleaned(address).lower() for address in found if address]
    return []


def _date(message: EmailMessage) -> datetime | None:
    with suppress(Exception):
        date: datetime | None = message["date"].datetime
        return date
    return None


def _attachments(message: EmailMessage) -> list[MIMEPart]:
    # It raises an error where a multipart message has no parts.
    with suppress(Exception):
        return list(message.iter_attachments())
    return []


def _text(message: EmailMessage) -> str:
    body = message.get_body(("plain", "html"))
    if body is None:
        return ""
    try:
        text = str(body.get_content())
    except (LookupError, ValueError):
        # An encoding that is unknown or not kept to.
        payload = body.get_payload(decode=True)
        text = payload.decode(errors="replace") if isinstance(payload, bytes) else str(payload)
    if body.get_content_subtype() == "html":
        text = html_to_markdown(text)
    return cleaned(text).replace("\r\n", "\n").strip()
