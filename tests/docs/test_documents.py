"""Runs the examples of README.md and docs/.

The Python blocks of a file run in order in one namespace, with ``await`` at the top level,
against a fresh database that LLMEMORY_DATABASE_URL names and with the static embedder. Put
``<!-- skip: next -->`` before a block that cannot run. Of the shell's blocks, every ``llmemory``
command must exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
RUN_PAGE = Path(__file__).parent / "run_page.py"
TEST_COMMAND = "pip install nox && nox"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the examples may add."""
    shutil.copy(README, tmp_path)
    for name in ("docs", "examples"):
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_python(
    page: Path, database_url: str, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMEMORY_DATABASE_URL", database_url)
    done = subprocess.run(
        [sys.executable, "-W", "error", RUN_PAGE, page], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_commands_exist() -> None:
    commands = {command for page in PAGES for command in commands_in(page.read_text())}
    for command in sorted(commands):
        result = subprocess.run(
            [sys.executable, "-m", "llmemory.cli", *command, "--help"],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"llmemory {' '.join(command)}: {result.stderr}"


def test_ci_runs_the_test_command_of_readme() -> None:
    assert TEST_COMMAND in README.read_text()
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1] == TEST_COMMAND


def commands_in(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the command words of each ``llmemory ...`` in the shell blocks of `text`."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in re.findall(r"(?:^|&& )(llmemory [a-z][^\n&|;]*)", block, re.MULTILINE):
            words = shlex.split(line, comments=True)[1:]
            # These have commands of their own.
            yield tuple(words[: 2 if words[0] in {"db", "jobs"} else 1])
