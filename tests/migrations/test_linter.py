"""squawk, a linter of migrations, finds nothing in a revision but what is stated here with why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from llmemory.schema import migrate
from llmemory.schema.prerequisites import MINIMUM_POSTGRESQL

SQUAWK = Path(sys.executable).with_name("squawk")
REVISIONS = {script.revision: script for script in migrate.script_directory().walk_revisions()}

LEFT_OUT = {
    # Whoever migrates says how long to wait: ``--lock-timeout``. A statement that is cut off would
    # be rolled back and begin anew.
    "require-lock-timeout",
    "require-statement-timeout",
}
# Rules that a revision breaks for a reason.
EXCEPTIONS = {
    "0001": {
        # Places within one document, lengths and attempts, and the number of an embedding space.
        "prefer-bigint-over-int",
        "prefer-bigint-over-smallint",
        # Alembic's version table.
        "prefer-text-field",
    },
    "0002": {
        # What the columns held is computed anew, from what stays.
        "ban-drop-column",
        "ban-drop-table",
        # The table is written anew, under a lock that its index makes longer by a third.
        "adding-field-with-default",
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
    },
    "0003": {
        # Allows more than before, in a table of a few rows.
        "ban-drop-constraint",
        "constraint-missing-not-valid",
    },
    "0004": {
        # What the columns held is computed anew, from what stays.
        "ban-drop-column",
        # The table is written anew, under a lock that its index makes longer by a third.
        "adding-field-with-default",
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
    },
    "0005": {
        # What the columns held is computed anew, from what stays.
        "ban-drop-column",
        # The table is written anew, under a lock that its index makes longer by a third.
        "adding-field-with-default",
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
    },
    "0006": {
        # Columns alone call it.
        "ban-drop-function",
        # What the columns held is computed anew, from what stays.
        "ban-drop-column",
        # The table is written anew, under a lock that its index makes longer by a third.
        "adding-field-with-default",
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
    },
    "0007": {
        # The table is locked for microseconds a document.
        "require-concurrent-index-creation",
        "require-concurrent-index-deletion",
    },
    "0008": {
        # The table is locked for a microsecond a document.
        "require-concurrent-index-creation",
    },
}


@pytest.mark.parametrize("revision", REVISIONS)
def test_squawk(revision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = REVISIONS[revision].down_revision
    migrate.print_sql("llmemory", f"{before}:{revision}" if before else revision)
    script = tmp_path / f"{revision}.sql"
    script.write_text(capsys.readouterr().out)
    done = subprocess.run(
        [SQUAWK, "--reporter=json", f"--pg-version={MINIMUM_POSTGRESQL}", script],
        capture_output=True,
        text=True,
    )
    found = defaultdict(list)
    for finding in json.loads(done.stdout):
        found[finding["rule_name"]].append(f"line {finding['line']}: {finding['message']}")
    unexpected = found.keys() - LEFT_OUT - EXCEPTIONS.get(revision, set())
    assert not unexpected, {rule: found[rule] for rule in unexpected}
    assert EXCEPTIONS.get(revision, set()) <= found.keys()
