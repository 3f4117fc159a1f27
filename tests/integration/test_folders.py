"""``llmemory add`` with folders: what patterns take, and what ``--prune`` may remove."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
from integration.helpers import fetch

from llmemory import HashEmbedder, Memory
from llmemory.cli import main


class Run(Protocol):
    def __call__(self, *arguments: str | Path, code: int = 0, answer: str = "") -> str: ...


@pytest.fixture
def run(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command on ``database_url``; give what it printed, errors first."""
    monkeypatch.setenv("LLMEMORY_DATABASE_URL", database_url)
    monkeypatch.setenv("LLMEMORY_EMBEDDER", "hash")

    def run(*arguments: str | Path, code: int = 0, answer: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["llmemory", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        capsys.readouterr()
        found = main()
        printed, errors = capsys.readouterr()
        assert found == code, errors + printed
        return errors + printed

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wiki"
    for name in ("a.md", "b.txt", "tool.py", "drafts/c.md", "deep/drafts/d.md", "deep/e.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"This is {name}.")
    return folder


def names(run: Run) -> set[str]:
    page = json.loads(run("list", "--json", "--limit", "100"))
    return {found["document_name"].removeprefix("wiki/") for found in page["documents"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"a.md", "b.txt", "drafts/c.md", "deep/drafts/d.md", "deep/e.md"}),
        (("--glob", "*.py"), {"tool.py"}),
        (("--glob", "*.py", "--glob", "/*.md"), {"tool.py", "a.md"}),
        (("--glob", "deep/**"), {"deep/drafts/d.md", "deep/e.md"}),
        (("--ignore", "drafts/"), {"a.md", "b.txt", "deep/e.md"}),
        (("--ignore", "/drafts/"), {"a.md", "b.txt", "deep/drafts/d.md", "deep/e.md"}),
        (("--ignore", "*.md", "--ignore", "!a.md"), {"a.md", "b.txt"}),
        (("--glob", "*.md", "--ignore", "deep"), {"a.md", "drafts/c.md"}),
    ],
)
def test_patterns_choose(
    run: Run, folder: Path, options: tuple[str, ...], expected: set[str]
) -> None:
    said = run("add", folder, *options, "--dry-run")
    assert {line.partition("/wiki/")[2] for line in said.splitlines()} == expected
    assert names(run) == set()
    run("add", folder, *options)
    assert names(run) == expected


def test_a_pattern_that_cannot_be_read(run: Run, folder: Path) -> None:
    assert "pattern" in run("add", folder, "--ignore", "!", code=2)


def test_prune_removes_what_is_gone_and_nothing_else(
    run: Run, folder: Path, tmp_path: Path, database_url: str
) -> None:
    beside = tmp_path / "wiki-old" / "x.md"
    beside.parent.mkdir()
    beside.write_text("Beside the folder.")
    run("add", folder, folder / "tool.py", beside)
    run("add", folder / "a.md", "--owner", "other")
    with Memory(database_url, embedder=HashEmbedder()) as memory:
        # An application's own, by an id that looks like a path.
        memory.add_document("default", "Bed", "A bed.", external_id=f"{folder}/products/1")
    beside.unlink()
    (folder / "a.md").unlink()
    (folder / "drafts" / "c.md").unlink()
    (folder / "drafts").rmdir()
    (folder / "b.txt").write_text("Changed.")
    said = run("add", folder, "--prune", "--dry-run")
    assert {line for line in said.splitlines() if line.startswith("would remove")} == {
        f"would remove {folder / name}" for name in ("drafts/c.md", "a.md")
    }
    assert len(names(run)) == 8
    assert "2 documents whose files are gone were kept" in run("add", folder, "--prune", answer="n")
    # Left out by a pattern is not gone: its file is there.
    said = run("add", folder, "--prune", "--ignore", "*.txt", answer="y\n")
    assert "0 created, 0 replaced, 2 unchanged, 0 failed, 2 removed" in said
    assert names(run) == {"b.txt", "tool.py", "deep/drafts/d.md", "deep/e.md", "x.md", "Bed"}
    assert "1 of 1" in run("list", "--owner", "other")
    assert "unchanged, 0 failed\n" in run("add", folder, "--prune", "--yes")


def test_a_folder_that_is_empty_now_keeps_its_documents(run: Run, folder: Path) -> None:
    """As a folder looks whose disk is not mounted."""
    run("add", folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    said = run("add", folder, "--prune", "--yes", code=1)
    assert "No such file" in said
    folder.mkdir()
    said = run("add", folder, "--prune", "--yes", code=1)
    assert "All 5 documents" in said
    assert "--force" in said
    assert len(names(run)) == 5
    moved.rename(folder)
    assert "5 unchanged" in run("add", folder, "--prune", "--yes")
    for file in folder.rglob("*.*"):
        file.unlink()
    assert "5 removed" in run("add", folder, "--prune", "--yes", "--force")
    assert names(run) == set()


def test_a_folder_that_cannot_be_read_keeps_its_documents(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", folder)
    (folder / "a.md").unlink()

    def scandir(path: Path) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert "deep cannot be read" in run("add", folder, "--prune", "--yes", code=1)
    assert len(names(run)) == 5


def test_a_file_that_the_server_refuses_is_named(run: Run, folder: Path, database_url: str) -> None:
    run("add", folder / "a.md")
    fetch(
        database_url,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.content LIKE '%b.txt%' THEN RAISE 'no' USING ERRCODE = '54000'; END IF; "
        "RETURN NEW; END $$",
    )
    fetch(
        database_url,
        "CREATE TRIGGER refuse BEFORE INSERT ON llmemory.chunks FOR EACH ROW "
        "EXECUTE FUNCTION public.refuse()",
    )
    said = run("add", folder, code=1)
    assert "b.txt: StorageError" in said
    assert "3 created, 0 replaced, 1 unchanged, 1 failed" in said
