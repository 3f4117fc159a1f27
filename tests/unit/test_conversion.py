"""Files that are converted: what comes out, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plugins.office_files import docx, packed, pdf, pptx

from llmemory import DocumentType, Settings, ValidationError
from llmemory.files.conversion import html_to_markdown
from llmemory.files.reading import FileContent, folder_suffixes, read_file

SETTINGS = Settings()

HTML = b"""<!DOCTYPE html><html><head><title>Not shown</title><style>p { color: red }</style></head>
<body><h1>Leave</h1><script>alert("never")</script><p>Staff have <b>25 days</b> of
<a href="https://example.com/very/long">leave</a>.<img src="data:image/png;base64,AAAA" alt="x"></p>
<ul><li>one_two</li><li>three</li></ul><table><tr><th>Year</th><th>Days</th></tr>
<tr><td>2025</td><td>25</td></tr></table></body></html>"""


def read(folder: Path, name: str, data: bytes, settings: Settings = SETTINGS) -> FileContent:
    file = folder / name
    file.write_bytes(data)
    return read_file(file, settings)


def test_pdf(tmp_path: Path) -> None:
    found = read(tmp_path, "a.PDF", pdf(["Annual leave", "Staff have 25 days."], ["Second page"]))
    assert found.content == "Annual leave\nStaff have 25 days.\n\nSecond page"
    assert found.document_type is DocumentType.PDF
    assert found.document_name == "a.PDF"
    assert found.metadata == {}


def test_docx(tmp_path: Path) -> None:
    data = docx("Leave", "Staff have 25 days.", [["Year", "Days"], ["2025", "25"]])
    found = read(tmp_path, "a.docx", data)
    assert found.content.startswith("# Leave\n\nStaff have 25 days.\n\n|")
    assert "| 2025 | 25 |" in found.content
    assert found.document_type is DocumentType.DOCX


def test_pptx(tmp_path: Path) -> None:
    data = pptx(("Leave", "Staff have\n25 days."), ("Expenses", "Send receipts."), notes="Smile.")
    found = read(tmp_path, "a.pptx", data)
    assert found.content == (
        "# Leave\n\nStaff have\n25 days.\n\nSmile.\n\n# Expenses\n\nSend receipts.\n\nSmile."
    )
    assert found.document_type is DocumentType.PRESENTATION


@pytest.mark.parametrize("name", ["a.html", "a.htm"])
def test_html(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, HTML)
    assert found.content.startswith("# Leave\n\nStaff have **25 days** of\nleave.\n")
    assert "* one_two" in found.content
    assert "| 2025 | 25 |" in found.content
    assert found.document_type is DocumentType.HTML
    for hidden in ("never", "color", "Not shown", "base64", "example.com"):
        assert hidden not in found.content


def test_the_encoding_of_html_is_the_one_it_names() -> None:
    page = '<meta charset="iso-8859-1"><p>Größe</p>'
    assert html_to_markdown(page.encode("latin-1")) == "Größe"
    assert html_to_markdown("<p>Größe 日本語</p>".encode()) == "Größe 日本語"
    assert html_to_markdown('<meta charset="latin-1"><p>Größe</p>') == "Größe"
    assert html_to_markdown("notes.txt") == "notes.txt"


def test_what_postgresql_cannot_store_is_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "a.html", b"<p>one\0two &#xD800; three &#x1F600;</p>")
    assert "\0" not in found.content
    assert "😀" in found.content
    assert found.content.encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", b"secret text"),
        ("a.pdf", b""),
        ("a.pdf", pdf(["secret"])[:300]),
        ("a.docx", b"secret text"),
        ("a.docx", packed({"secret": "text"})),
        ("a.docx", docx("a", "b")[:400]),
        ("a.pptx", docx("a", "b")),
        ("a.pptx", b"PK\x03\x04 secret"),
        ("a.eml", b"secret text without headers"),
        ("a.eml", b""),
        ("a.html", b"<b>" * 100_000 + b"secret"),
    ],
)
def test_what_is_broken_says_so_and_quotes_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(ValidationError, match="cannot be converted: it is broken") as caught:
        read(tmp_path, name, data)
    assert caught.value.field == "path"
    assert "secret" not in str(caught.value)
    assert Path(name).suffix in str(caught.value)


@pytest.mark.parametrize(("name", "data"), [("a.pdf", pdf([])), ("a.html", b"<script>x</script>")])
def test_a_file_without_text(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(ValidationError, match="holds no text"):
        read(tmp_path, name, data)


def test_an_encrypted_pdf(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    plain = tmp_path / "plain.pdf"
    plain.write_bytes(pdf(["Leave."]))
    for password, opens in (("", True), ("hunter2", False)):
        writer = PdfWriter(clone_from=PdfReader(plain))
        writer.encrypt(password, algorithm="RC4-128")
        file = tmp_path / "locked.pdf"
        writer.write(file)
        if opens:
            assert read_file(file, SETTINGS).content == "Leave."
        else:
            with pytest.raises(ValidationError, match="encrypted"):
                read_file(file, SETTINGS)


def test_limits_of_size(tmp_path: Path) -> None:
    data = pdf(["Leave."])
    small = Settings(max_file_bytes=len(data), max_content_bytes=10)
    assert read(tmp_path, "a.pdf", data, small).content == "Leave."
    with pytest.raises(ValidationError, match="max_file_bytes"):
        read(tmp_path, "a.pdf", data, Settings(max_file_bytes=len(data) - 1))
    bomb = packed({"word/document.xml": "x" * 1_000_000})
    assert len(bomb) < 2_000
    for suffix in ("docx", "pptx"):
        with pytest.raises(ValidationError, match="unpacked larger than max_file_bytes"):
            read(tmp_path, f"a.{suffix}", bomb, Settings(max_file_bytes=500_000))


@pytest.mark.parametrize(
    ("name", "data", "missing"),
    [
        ("a.pdf", pdf(["a"]), "pypdf"),
        ("a.docx", docx("a", "b"), "mammoth"),
        ("a.pptx", pptx(("a", "b")), "pptx"),
        ("a.html", HTML, "markdownify"),
        ("a.eml", b"From: a@b.c\nContent-Type: text/html\n\n<p>x</p>", "markdownify"),
    ],
)
def test_without_the_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValidationError, match=r"pip install \"\.\[files\]\""):
        read(tmp_path, name, data)


def test_what_is_taken_from_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {".md", ".markdown", ".txt", ".rst", ".text"}
    assert folder_suffixes() == text | {".pdf", ".docx", ".pptx", ".html", ".htm", ".eml"}
    monkeypatch.setattr("llmemory.files.conversion.find_spec", lambda name: None)
    assert folder_suffixes() == text
