"""The commands that prepare a database, fill it for a demonstration and keep it up."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from pathlib import Path

import psycopg
import pytest
from integration.helpers import fetch
from plugins.command_line import Run, command, environment, ids, in_terminal, one_line

from llmemory.schema import migrate


def test_health(run: Run, empty_database_url: str) -> None:
    assert json.loads(run("health", "--json").stdout)["healthy"] is True
    sick = run("health", code=1, LLMEMORY_DATABASE_URL=empty_database_url)
    assert re.search(r"^healthy +False$", sick.stdout, re.MULTILINE)
    # Looking must not migrate.
    run("health", code=1, LLMEMORY_DATABASE_URL=empty_database_url)


def test_db_goes_down_and_up(run: Run, notes: Path) -> None:
    run("add", notes)
    assert run("db", "current").stdout == f"llmemory: {migrate.HEAD} (head)\n"
    run("db", "check")
    for answer in ("", "n\n", "\n"):
        refused = run("db", "downgrade", "base", code=1, answer=answer)
        assert "[y/N]" in refused.stderr
        assert len(ids(run)) == 2
    assert run("db", "downgrade", "base", answer="y\n").stdout == "llmemory: no tables\n"
    assert "llmemory db upgrade" in one_line(run("db", "check", code=1).stderr)
    one_line(run("list", code=1, LLMEMORY_MIGRATE="false").stderr)
    assert run("db", "upgrade").stdout == f"llmemory: {migrate.HEAD} (head)\n"
    run("db", "downgrade", "base", "--yes")
    assert ids(run) == {}


@pytest.mark.parametrize("schema", ["llmemory", "My-tenant", '100% "ü":x'])
def test_db_sql_makes_the_same_tables(run: Run, empty_database_url: str, schema: str) -> None:
    script = run("db", "sql", "--schema", schema, "--database-url", "postgresql://nowhere").stdout
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(script.encode())
    run("db", "check", "--schema", schema, LLMEMORY_DATABASE_URL=empty_database_url)


def test_db_makes_an_empty_database_usable(run: Run, empty_database_url: str) -> None:
    on_empty = {"LLMEMORY_DATABASE_URL": empty_database_url, "LLMEMORY_MIGRATE": "false"}
    assert run("db", "current", **on_empty).stdout == "llmemory: no tables\n"
    run("db", "upgrade", **on_empty)
    run("stats", **on_empty)


def test_demo_twice(run: Run, empty_database_url: str) -> None:
    first = run("demo", LLMEMORY_DATABASE_URL=empty_database_url).stdout
    assert re.search(r"^created +README\.md$", first, re.MULTILINE)
    # Texts are indented, and may hold the same words.
    assert first.count("\n$ llmemory search --owner demo") == 3
    assert first.count("\n1. ") == 3
    assert "llmemory add PATH" in first
    second = run("demo", LLMEMORY_DATABASE_URL=empty_database_url).stdout
    assert re.search(r"^unchanged +README\.md$", second, re.MULTILINE)
    assert " 0 replaced, " in second
    assert "0 created" in second


def test_two_demos_at_once(empty_database_url: str) -> None:
    both = [
        subprocess.Popen(
            command("demo"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(empty_database_url),
        )
        for _ in range(2)
    ]
    for demo in both:
        output, problems = demo.communicate(timeout=120)
        assert demo.returncode == 0, problems
        assert problems == ""
        assert " 0 failed" in output
    with psycopg.connect(empty_database_url) as connection:
        counted = connection.execute(
            "SELECT count(*), count(DISTINCT external_id) FROM llmemory.documents"
        ).fetchone()
    assert counted is not None
    assert counted[0] == counted[1] > 0


def test_maintain(run: Run, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("The gate is green.")
    run("add", "note.md", "--owner", "acme")
    variables = {"LLMEMORY_HNSW_OWNER_VECTORS": "1"}
    assert re.search(r"^indexes built +1$", run("db", "maintain", **variables).stdout, re.M)
    assert re.search(r"^indexes built +0$", run("db", "maintain", **variables).stdout, re.M)
    assert "The gate is green." in run("search", "gate", "--owner", "acme", **variables).stdout


def test_reembed(run: Run, notes: Path, database_url: str) -> None:
    run("add", notes)
    variables = {"LLMEMORY_HASH_DIMENSIONS": "96"}
    assert "or reembed" in one_line(run("search", "tea", code=1, **variables).stderr)
    assert re.search(r"^embedding state +-$", run("health", code=1, **variables).stdout, re.M)
    done = run("reembed", **variables).stdout
    assert re.search(r"^embeddings created +2$", done, re.M)
    assert "Tea is served" in run("search", "tea", "--type", "vector", **variables).stdout
    # The former embedder finds its vectors still.
    assert re.search(r"^embedding state +replaced$", run("health").stdout, re.M)
    listed = json.loads(run("db", "spaces", "--json").stdout)
    assert [(space["state"], space["vectors"]) for space in listed] == [
        ("replaced", 2),
        ("in use", 2),
    ]
    refused = run("db", "drop-space", "1", answer="n\n", code=1)
    assert "Nothing was changed" in refused.stderr
    assert run("db", "drop-space", "1", "--yes", **variables).stdout == "2 vectors deleted\n"
    assert re.search(r"^ +1  dropped +0 +2 +256  hash/hash$", run("db", "spaces").stdout, re.M)
    assert "is the default" in one_line(run("db", "drop-space", "2", "--yes", code=2).stderr)
    shown = in_terminal(
        command("reembed", "--drop-old"),
        environment(database_url, TERM="xterm-256color", LLMEMORY_HASH_DIMENSIONS="32"),
    )
    assert "embedding: hash/hash (32 dimensions)" in shown
    assert "2/2" in shown


def test_row_level_security(run: Run, database_url: str) -> None:
    role = f"llmemory_cli_{secrets.token_hex(4)}"
    fetch(database_url, f"CREATE ROLE {role}")
    try:
        enabled = run("db", "enable-rls", "--all-owners-role", role)
        assert enabled.stdout == 'Schema "llmemory": row level security is on.\n'
        granted = fetch(
            database_url, "SELECT DISTINCT roles::text FROM pg_policies WHERE qual = 'true'"
        )
        assert granted == [(f"{{{role}}}",)]
        assert "is a superuser" in run("health").stdout
        run("db", "enable-rls")
        assert fetch(database_url, "SELECT * FROM pg_policies WHERE qual = 'true'") == []
        disabled = run("db", "disable-rls")
        assert disabled.stdout == 'Schema "llmemory": row level security is off.\n'
        assert fetch(database_url, "SELECT * FROM pg_policies") == []
    finally:
        fetch(database_url, f"DROP OWNED BY {role}")
        fetch(database_url, f"DROP ROLE {role}")


@pytest.mark.parametrize("name", ["distribute", "undistribute"])
def test_without_citus_nothing_is_distributed(name: str, run: Run) -> None:
    refused = run("db", name, code=1)
    assert "CREATE EXTENSION citus;" in one_line(refused.stderr)
