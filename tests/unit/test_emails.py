"""E-mail messages, well made and badly made."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from llmemory import DocumentType, Settings
from llmemory.files.emails import parse_email
from llmemory.files.reading import read_file

DATE = "Mon, 03 Mar 2025 09:30:00 +0100"


def message(**headers: str) -> EmailMessage:
    made = EmailMessage()
    for name, value in headers.items():
        made[name.replace("_", "-")] = value
    return made


def test_a_message_with_everything() -> None:
    mail = message(
        From="Ada Lovelace <Ada@Example.com>",
        To="bob@example.com, Carol <carol@example.com>",
        Cc="dave@example.com",
        Subject="Größere Räume",
        Date=DATE,
        Message_ID="<1@example.com>",
    )
    mail.set_content("The rooms are too small.\r\n")
    mail.add_alternative("<p>The rooms are <b>too</b> small.</p>", subtype="html")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan ü.pdf")
    found = parse_email(mail.as_bytes())
    assert found.metadata == {
        "from": "ada@example.com",
        "to": ["bob@example.com", "carol@example.com"],
        "cc": ["dave@example.com"],
        "date": "2025-03-03T09:30:00+01:00",
        "subject": "Größere Räume",
        "message_id": "<1@example.com>",
        "attachments": ["plan ü.pdf"],
    }
    assert found.subject == "Größere Räume"
    assert found.sender == "ada@example.com"
    assert found.date == datetime(2025, 3, 3, 8, 30, tzinfo=UTC)
    assert found.content == (
        "From: Ada Lovelace <Ada@Example.com>\n"
        "To: bob@example.com, Carol <carol@example.com>\n"
        "Cc: dave@example.com\n"
        "Subject: Größere Räume\n"
        f"Date: {DATE}\n\n"
        "The rooms are too small.\n\n"
        "Attachments: plan ü.pdf"
    )


def test_html_only() -> None:
    mail = message(From="a@b.c", Subject="Rooms")
    mail.set_content("<h1>Rooms</h1><p>Too &amp; small, Größe.</p>", subtype="html")
    assert parse_email(mail.as_bytes()).content.endswith("# Rooms\n\nToo & small, Größe.")


def test_a_forwarded_message_and_an_attachment_without_a_name() -> None:
    inner = message(From="x@y.z", Subject="Inner")
    inner.set_content("Inner text.")
    mail = message(From="a@b.c", Subject="Outer")
    mail.set_content("See below.")
    mail.add_attachment(inner)
    mail.add_attachment(b"\0", maintype="application", subtype="octet-stream")
    found = parse_email(mail.as_bytes())
    assert found.metadata["attachments"] == ["unnamed", "unnamed"]
    assert "See below." in found.content


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"Subject: \xff\xfe\n\ntext", "text"),
        (b"From: a@b.c\nDate: yesterday\n\ntext", "text"),
        (b"From: <<>>@@,,\nTo: ,;:\nSubject: x\n\ntext", "text"),
        (
            b"Subject: x\nContent-Type: text/plain; charset=unknown-7\n\nGr\xc3\xb6\xc3\x9fe",
            "Größe",
        ),
        (b"Subject: x\nContent-Type: text/plain; charset=utf-8\n\nGr\xf6\xdfe", "Gr"),
        (b"Subject: x\nContent-Type: multipart/mixed\n\ntext", "Subject: x"),
        (b"Subject: x\nContent-Transfer-Encoding: base64\n\n!!!", "Subject: x"),
        (b"Subject: =?utf-8?b?AAAA?= \xed\xa0\x80\n\none\0two", "onetwo"),
        (b"Subject: one\n two\nDate: Mon, 03 Mar 2025 09:30:00 -0000\n\ntext", "one two"),
    ],
)
def test_what_is_badly_made_is_read_as_far_as_possible(raw: bytes, expected: str) -> None:
    found = parse_email(raw)
    assert expected in found.content
    assert "\0" not in found.content
    assert found.content.encode()
    assert str(found.metadata).encode()


def test_a_file_without_subject(tmp_path: Path) -> None:
    file = tmp_path / "a.eml"
    file.write_bytes(b"From: a@b.c\n\ntext")
    found = read_file(file, Settings())
    assert found.document_name == "(no subject)"
    assert found.document_type is DocumentType.EMAIL
    assert found.id_at_origin == "a@b.c"
    assert found.document_date is None


def test_a_subject_longer_than_a_name(tmp_path: Path) -> None:
    file = tmp_path / "a.eml"
    file.write_bytes(b"Subject: " + b"word " * 50 + b"\n\ntext")
    assert len(read_file(file, Settings(max_name_length=20)).document_name) == 20
