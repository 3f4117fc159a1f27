"""The commands that add documents, find them, show them and delete them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from plugins.command_line import Run, ids, one_line

UNKNOWN_ID = "0199c1c4-3f6f-7cc3-9a51-1a2b3c4d5e6f"


def test_a_folder_is_added_and_found(run: Run, notes: Path) -> None:
    assert run("add", notes).stdout == "2 created, 0 replaced, 0 unchanged, 0 failed\n"
    assert ids(run).keys() == {"notes/leave.md", "notes/deep/tea.TXT"}
    found = run("search", "days of leave").stdout
    assert re.search(
        r"^1\. notes/leave\.md > Leave > Holidays\n   score \d\.\d\d, document [-0-9a-f]{36}$",
        found,
        re.MULTILINE,
    )
    assert "   Staff have 25 days of leave.\n" in found
    assert "\x1b" not in found


def test_adding_again_updates(run: Run, notes: Path) -> None:
    run("add", notes)
    assert run("add", notes).stdout == "0 created, 0 replaced, 2 unchanged, 0 failed\n"
    (notes / "leave.md").write_text("# Leave\n\nStaff have 30 days of leave.\n")
    # However the path is spelled, and even if it is given twice, it is one document.
    spelled = notes / "deep" / ".." / "leave.md"
    assert run("add", notes, spelled).stdout == ("0 created, 1 replaced, 1 unchanged, 0 failed\n")
    assert len(ids(run)) == 2
    assert "30 days" in run("search", "leave", "--type", "text").stdout


def test_bad_files_are_named_and_the_others_added(run: Run, notes: Path, tmp_path: Path) -> None:
    (notes / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    (notes / "null.txt").write_text("a\0b")
    paper = tmp_path / "paper.pdf"
    paper.write_bytes(b"%PDF-1.7")
    done = run("add", notes, paper, tmp_path / "missing.md", code=1)
    assert done.stdout == "2 created, 0 replaced, 0 unchanged, 4 failed\n"
    problems = done.stderr.splitlines()
    assert len(problems) == 4
    for name, reason in {
        "latin.txt": "is no text in UTF-8 (byte 4)",
        "null.txt": "NUL",
        "paper.pdf": "cannot be converted: it is broken, encrypted or no .pdf file",
        "missing.md": "No such file",
    }.items():
        assert any(name in problem and reason in problem for problem in problems), problems


def test_an_empty_file_is_skipped(run: Run, notes: Path) -> None:
    (notes / "empty.md").write_text(" \n\u200b")
    done = run("add", notes)
    assert done.stderr == f"{notes / 'empty.md'} is empty; skipped.\n"
    assert done.stdout == "2 created, 0 replaced, 0 unchanged, 0 failed, 1 skipped\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(run: Run, notes: Path) -> None:
    (notes / "deep").chmod(0)
    try:
        done = run("add", notes, code=1)
    finally:
        (notes / "deep").chmod(0o755)
    assert "deep cannot be read: Permission denied" in one_line(done.stderr)
    assert done.stdout == "1 created, 0 replaced, 0 unchanged, 1 failed\n"


def test_a_file_given_by_name_may_be_any_text(run: Run, notes: Path) -> None:
    run("add", notes / "script.py", "--owner", "me", "--language", "german")
    run("add", notes / "leave.md", "--owner", "me", "--type", "report")
    page = json.loads(run("list", "--owner", "me", "--json").stdout)
    found = {(item["document_name"], item["document_type"]): item for item in page["documents"]}
    assert found.keys() == {("script.py", "code"), ("leave.md", "report")}
    assert found["script.py", "code"]["language"] == "german"


def test_a_folder_without_text_says_what_is_looked_for(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("add", tmp_path / "empty")
    assert "*.md" in done.stderr
    assert done.stdout == "0 created, 0 replaced, 0 unchanged, 0 failed\n"


def test_many_files_are_added_in_batches(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:03}.txt").write_text(f"Note {number} of many.")
    (folder / "300.txt").write_text("a\0b")
    done = run("add", folder, code=1)
    assert done.stdout == "599 created, 0 replaced, 0 unchanged, 1 failed\n"


@pytest.mark.parametrize("kind", ["hybrid", "text", "vector"])
def test_search_prints_json(run: Run, notes: Path, kind: str) -> None:
    run("add", notes)
    hits = json.loads(
        run("search", "tea in the kitchen", "--type", kind, "--limit", "1", "--json").stdout
    )
    assert [hit["document_name"] for hit in hits] == ["notes/deep/tea.TXT"]
    assert hits[0]["content"].startswith("Tea is served")


def test_search_shows_the_lines_that_fit_or_all(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    lines = [f"Line number {number}." for number in range(40)]
    lines[30] = "Here is the marmalade."
    file.write_text("\n".join(lines))
    run("add", file)
    short = run("search", "marmalade", "--type", "text").stdout
    assert "marmalade" in short
    assert "   ...\n" in short
    assert "number 2." not in short
    full = run("search", "marmalade", "--type", "text", "--full").stdout
    assert all(line in full for line in lines)


def test_a_search_without_hits_says_so(run: Run) -> None:
    done = run("search", "anything", "--owner", "nobody")
    assert done.stdout == ""
    assert 'owner "nobody"' in done.stderr
    assert json.loads(run("search", "anything", "--json").stdout) == []


def test_list_goes_by_pages(run: Run, notes: Path) -> None:
    run("add", notes)
    first = run("list", "--limit", "1")
    assert len(first.stdout.splitlines()) == 2
    assert "1 of 2 documents" in first.stderr
    assert "--offset 1 shows more" in first.stderr
    second = run("list", "--limit", "1", "--offset", "1")
    assert "shows more" not in second.stderr
    names = {done.stdout.splitlines()[1].split()[-1] for done in (first, second)}
    assert names == {"notes/leave.md", "notes/deep/tea.TXT"}


def test_show_prints_the_document(run: Run, notes: Path) -> None:
    run("add", notes)
    document_id = ids(run)["notes/leave.md"]
    text = run("show", document_id).stdout
    assert str(notes / "leave.md") in text
    assert text.endswith((notes / "leave.md").read_text())
    assert json.loads(run("show", document_id, "--json").stdout)["document_id"] == document_id
    for owner, wrong in (("default", UNKNOWN_ID), ("other", document_id), ("default", "abc")):
        one_line(run("show", wrong, "--owner", owner, code=1).stderr)


def test_delete_goes_on_after_an_unknown_id(run: Run, notes: Path) -> None:
    run("add", notes)
    first, second = ids(run).values()
    done = run("delete", first, UNKNOWN_ID, second, code=1)
    assert done.stdout == "2 deleted, 1 not found\n"
    assert UNKNOWN_ID in one_line(done.stderr)
    assert ids(run) == {}


def test_stats(run: Run, notes: Path) -> None:
    run("add", notes)
    assert re.search(r"^document count +2$", run("stats").stdout, re.MULTILINE)
    counted = json.loads(run("stats", "--json").stdout)
    assert counted["documents_by_type"] == {"markdown": 1, "text": 1}
