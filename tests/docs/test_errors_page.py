"""docs/errors.md explains every error, with its place in the tree and its attributes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from llmemory import errors

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
SECTION = PAGE.partition("## Each error")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", SECTION, re.MULTILINE))
TREE = re.findall(r"^([│├└─ ]*)(\w+)", PAGE.partition("```text\n")[2].partition("```")[0], re.M)
CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", CLASSES)
def test_row(error: type[errors.LLMemoryError]) -> None:
    attributes = ROWS[error.__name__].rpartition("|")[2]
    for argument in inspect.signature(error.__init__).parameters.values():
        if argument.kind is inspect.Parameter.KEYWORD_ONLY:
            assert f"`{argument.name}`" in attributes


def test_tree() -> None:
    path: list[str] = []
    drawn = {}
    for indent, name in TREE:
        del path[len(indent) // 4 :]
        drawn[name] = path[-1] if path else "Exception"
        path.append(name)
    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in CLASSES}
