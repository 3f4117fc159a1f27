"""The command line: commands run in this process, or as one of their own."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

import llmemory
from llmemory.cli import main

PACKAGE_PARENT = Path(llmemory.__file__).parents[1]


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


Run: TypeAlias = Callable[..., Done]


def environment(url: str | None, **variables: str) -> dict[str, str]:
    """Return the variables of a command on the database of a URL."""
    # A fixture has hidden the developer's own settings already.
    kept = dict(os.environ)
    path = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, [kept.get("PYTHONPATH")])])
    # Deterministic vectors: what is tested here is the command line, not the ranking.
    ours = {"PYTHONPATH": path, "LLMEMORY_EMBEDDER": "hash", "COLUMNS": "80"}
    if url is not None:
        ours["LLMEMORY_DATABASE_URL"] = url
    return {**kept, **ours, **variables}


def command(*arguments: str | Path) -> list[str]:
    """Return what starts a command as a process."""
    return [sys.executable, "-m", "llmemory.cli", *map(str, arguments)]


@pytest.fixture
def run(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command on ``database_url`` in this process, ten times faster than in its own.

    Its exit code must be `code`. A test of what only a process has starts one by itself.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, code: int = 0, answer: str = "", **variables: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in environment(database_url, **variables).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["llmemory", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.StringIO(answer))
            capsys.readouterr()
            found = main()
        done = Done(*capsys.readouterr())
        assert found == code, (found, done)
        return done

    return run


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of two files to be added, and some that are not."""
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "leave.md").write_text("# Leave\n\n## Holidays\n\nStaff have 25 days of leave.\n")
    (folder / "deep" / "tea.TXT").write_text("Tea is served at four in the kitchen.\n")
    (folder / "script.py").write_text("print('not taken from a folder')\n")
    (folder / ".hidden" / "secret.md").write_text("Not taken either.\n")
    return folder


def one_line(text: str) -> str:
    """Check that it is an error on one line; return it."""
    assert text.count("\n") == 1, text
    assert text.startswith("error: "), text
    return text


def ids(run: Run, owner: str = "default") -> dict[str, str]:
    """Return the ids of an owner's documents by their names."""
    page = json.loads(run("list", "--json", "--owner", owner, "--limit", "100").stdout)
    return {found["document_name"]: found["document_id"] for found in page["documents"]}


def in_terminal(arguments: list[str], variables: dict[str, str]) -> str:
    """Return what a command prints on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    shown = b""
    try:
        # Linux reports the far end's closing as an error.
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return shown.decode()
