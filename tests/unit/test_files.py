"""Reading files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmemory import DocumentType, Settings, ValidationError
from llmemory.files.reading import FileContent, external_id_of, name_of, read_file

SETTINGS = Settings()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.md", DocumentType.MARKDOWN),
        ("a.MARKDOWN", DocumentType.MARKDOWN),
        ("a.txt", DocumentType.TEXT),
        ("README", DocumentType.TEXT),
        (".hidden", DocumentType.TEXT),
        ("a.tar.md", DocumentType.MARKDOWN),
        ("a.py", DocumentType.CODE),
        ("a.unknown", DocumentType.TEXT),
    ],
)
def test_the_type_is_told_by_the_ending(tmp_path: Path, name: str, expected: DocumentType) -> None:
    file = tmp_path / name
    file.write_text("Text.")
    assert read_file(file, SETTINGS) == FileContent("Text.", expected, name)
    assert read_file(str(file), SETTINGS).document_type is expected


def test_a_byte_order_mark_is_taken_off_and_line_ends_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_file(file, SETTINGS).content == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize("suffix", ["doc", "xlsx", "PNG", "zip", "msg"])
def test_what_must_be_converted_says_so(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(b"text")
    with pytest.raises(ValidationError, match="convert"):
        read_file(file, SETTINGS)


@pytest.mark.parametrize(
    "content", ["é".encode("latin-1"), "text".encode("utf-16"), b"\xff\xfe", b"\xed\xa0\x80"]
)
def test_what_is_no_utf_8(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(ValidationError, match="UTF-8") as caught:
        read_file(file, SETTINGS)
    assert caught.value.field == "path"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    loop = tmp_path / "loop.txt"
    loop.symlink_to(loop)
    for path in (tmp_path / "missing", tmp_path, loop, tmp_path / ("x" * 300)):
        with pytest.raises(ValidationError, match="cannot be read"):
            read_file(path, SETTINGS)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    # A writer lets a reader that opens it go on, instead of hanging this test.
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(writer, b"text")
        os.set_blocking(writer, True)
        import threading

        closer = threading.Timer(2, os.close, [writer])
        closer.start()
        with pytest.raises(ValidationError, match=r"pipe\.txt"):
            read_file(pipe, SETTINGS)
    finally:
        closer.cancel()
        closer.join()


def test_the_limit_is_in_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ü" * 5)
    assert read_file(file, Settings(max_content_bytes=10)).content == "ü" * 5
    with pytest.raises(ValidationError, match="max_content_bytes"):
        read_file(file, Settings(max_content_bytes=9))


def test_names_and_ids_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a b ü.md"
    file.write_text("x")
    (tmp_path / "link.md").symlink_to(file)
    assert name_of("folder/a b ü.md") == "a b ü.md"
    ids = {
        external_id_of(path, SETTINGS)
        for path in (file, str(file), "a b ü.md", "./x/../a b ü.md", "link.md")
    }
    assert ids == {str(file.resolve())}


def test_odd_paths_have_ids_that_can_be_stored(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.txt")
    Path(odd).write_text("x")
    long = "/".join(["x" * 200] * 5)
    for path in (odd, long, str(tmp_path / "new\nline")):
        found = external_id_of(path, SETTINGS)
        assert found.startswith("sha256:")
        assert len(found.encode()) <= SETTINGS.max_id_bytes
        assert name_of(path).encode()
    assert read_file(odd, SETTINGS).content == "x"
    assert external_id_of(odd, SETTINGS) != external_id_of(long, SETTINGS)
