"""Files from the disk into the database: converted, searched, and never in the loop's way."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from plugins.office_files import docx, pdf, pptx

from llmemory import AsyncMemory, DocumentType, ValidationError

pytestmark = pytest.mark.anyio

MAIL = b"""From: Ada <ada@example.com>
To: bob@example.com
Subject: Rooms
Date: Mon, 03 Mar 2025 09:30:00 +0100
Message-ID: <1@example.com>
Content-Type: text/html

<p>The rooms are too <b>small</b>.</p>
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "leave.pdf": pdf(["Staff have 25 days of leave."]),
        "travel.docx": docx("Travel", "Trains are booked by the office."),
        "plans.pptx": pptx(("Plans", "A new warehouse in Porto.")),
        "page.html": b"<p>Visitors park behind the house.</p>",
        "mail.eml": MAIL,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


async def test_each_format_is_found_again(memory: AsyncMemory, folder: Path) -> None:
    for name, kind, query in (
        ("leave.pdf", DocumentType.PDF, "leave"),
        ("travel.docx", DocumentType.DOCX, "trains"),
        ("plans.pptx", DocumentType.PRESENTATION, "Porto"),
        ("page.html", DocumentType.HTML, "visitors"),
    ):
        added = await memory.add_file("acme", folder / name, additional_metadata={"of": name})
        assert (added.status, added.document_name) == ("created", name)
        (hit,) = await memory.search("acme", query, search_type="text")
        assert (hit.document_name, hit.document_type) == (name, kind)
        assert hit.metadata == {"of": name}
        assert hit.external_id == str(folder / name)
        assert (await memory.add_file("acme", folder / name)).status == "unchanged"


async def test_an_email_brings_its_headers(memory: AsyncMemory, folder: Path) -> None:
    await memory.add_file("acme", folder / "mail.eml", additional_metadata={"labels": ["work"]})
    (hit,) = await memory.search(
        "acme",
        "small rooms",
        metadata_filter={"from": "ada@example.com", "to": ["bob@example.com"]},
        date_from="2025-03-03",
        date_to="2025-03-03",
    )
    assert (hit.document_name, hit.document_type) == ("Rooms", DocumentType.EMAIL)
    assert hit.id_at_origin == "ada@example.com"
    assert hit.document_date == datetime(2025, 3, 3, 8, 30, tzinfo=UTC)
    assert hit.metadata["labels"] == ["work"]
    assert hit.metadata["message_id"] == "<1@example.com>"
    with pytest.raises(ValidationError) as caught:
        await memory.add_file("acme", folder / "mail.eml", additional_metadata=["labels"])  # type: ignore[arg-type]
    assert caught.value.field == "additional_metadata"


async def test_what_is_given_wins(memory: AsyncMemory, folder: Path) -> None:
    await memory.add_file(
        "acme",
        folder / "mail.eml",
        document_name="Complaint",
        document_type="report",
        id_at_origin=7,
        external_id="mail-1",
        document_date="2020-01-01",
        additional_metadata={"from": "nobody"},
    )
    (document,) = (await memory.list_documents("acme")).documents
    assert document.document_name == "Complaint"
    assert document.document_type is DocumentType.REPORT
    assert (document.id_at_origin, document.external_id) == ("7", "mail-1")
    assert document.document_date == datetime(2020, 1, 1, tzinfo=UTC)
    assert (document.metadata["from"], document.metadata["subject"]) == ("nobody", "Rooms")


async def test_a_large_file_does_not_hold_up_the_event_loop(
    memory: AsyncMemory, tmp_path: Path, heartbeat: Any
) -> None:
    lines = [f"Line {number} about leave and expenses." for number in range(40)]
    (tmp_path / "long.pdf").write_bytes(pdf(*[lines] * 60))
    await memory.initialize()
    async with heartbeat() as beat:
        await memory.add_file("acme", tmp_path / "long.pdf", embed="later")
    assert beat.moments < 5


def test_the_command_takes_them_from_folders(folder: Path, database_url: str) -> None:
    (folder / "broken.pdf").write_bytes(b"no PDF")
    environment = {"LLMEMORY_DATABASE_URL": database_url, "LLMEMORY_EMBEDDER": "hash"}
    run = subprocess.run(
        [sys.executable, "-m", "llmemory.cli", "add", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert run.returncode == 1
    assert "5 created" in run.stdout
    assert "1 failed" in run.stdout
    assert "broken.pdf cannot be converted" in " ".join(run.stderr.split())
