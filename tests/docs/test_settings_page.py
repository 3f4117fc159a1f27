"""docs/configuration.md lists every setting as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le

from llmemory import Settings
from llmemory.text.languages import AUTO, LANGUAGES

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| `(LLMEMORY_\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = {row[0]: row for row in ROW.findall(PAGE)}


def test_the_table_is_complete() -> None:
    assert list(ROWS) == list(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_row(name: str) -> None:
    field = Settings.model_fields[name]
    _, variable, default, values, _ = ROWS[name]
    assert variable == f"LLMEMORY_{name.upper()}"
    assert default == shown(field.default)
    lowest, highest = "", ""
    for bound in field.metadata:
        if isinstance(bound, Ge):
            lowest = str(bound.ge)
        elif isinstance(bound, Gt):
            lowest = f"above {bound.gt}"
        elif isinstance(bound, Le):
            highest = str(bound.le)
    if lowest:
        assert values.endswith(f", {lowest} to {highest}")


def shown(default: object) -> str:
    if default is None:
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_languages() -> None:
    listed = PAGE.rpartition("## Languages")[2]
    assert all(f"`{language}`" in listed for language in (AUTO, *LANGUAGES))
