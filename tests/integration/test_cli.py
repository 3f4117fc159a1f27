"""The command line: what its commands print, their exit codes, and what it does as a process."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import psycopg
import pytest
from integration.helpers import fetch

import llmemory
from llmemory.cli import main
from llmemory.schema import migrate

PACKAGE_PARENT = Path(llmemory.__file__).parents[1]
UNKNOWN_ID = "0199c1c4-3f6f-7cc3-9a51-1a2b3c4d5e6f"


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


Run: TypeAlias = Callable[..., Done]

pytestmark = pytest.mark.timeout(180)


def environment(url: str | None, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMEMORY_")}
    path = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, [kept.get("PYTHONPATH")])])
    # Deterministic vectors: what is tested here is the command line, not the ranking.
    ours = {"PYTHONPATH": path, "LLMEMORY_EMBEDDER": "hash", "COLUMNS": "80"}
    if url is not None:
        ours["LLMEMORY_DATABASE_URL"] = url
    return {**kept, **ours, **variables}


def command(*arguments: str | Path) -> list[str]:
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
    assert text.count("\n") == 1, text
    assert text.startswith("error: "), text
    return text


def ids(run: Run, owner: str = "default") -> dict[str, str]:
    page = json.loads(run("list", "--json", "--owner", owner, "--limit", "100").stdout)
    return {found["document_name"]: found["document_id"] for found in page["documents"]}


def test_help_and_version_need_no_database() -> None:
    for arguments, expected in (["--version"], llmemory.__version__), (["--help"], "search"):
        done = subprocess.run(
            command(*arguments),
            check=True,
            capture_output=True,
            text=True,
            env=environment("postgresql://nowhere.invalid/none"),
        )
        assert expected in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "add",
        "search",
        "list",
        "show",
        "delete",
        "stats",
        "health",
        "worker",
        "reembed",
        "jobs",
        "db",
    ],
)
def test_every_command_explains_itself(name: str, run: Run) -> None:
    text = run(name, "--help").stdout
    assert f"Usage: llmemory {name}" in text
    assert "--database-url" in text
    assert "settings" not in text


@pytest.mark.parametrize("missing", ["cyclopts", "pathspec", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; import llmemory.cli as cli; " + (
        "sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=environment(None),
    )
    assert done.returncode == 1
    assert 'pip install ".[cli]"' in one_line(done.stderr)


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


def test_text_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "evil.md"
    file.write_text("# Title \x1b[31m\n\nRed \x1b[31m text [bold]and markup[/bold] :smile:\r\n")
    run("add", file)
    found = run("search", "red text").stdout
    assert "\x1b" not in found
    assert "\r" not in found
    assert "[bold]and markup[/bold] :smile:" in found


def test_output_survives_a_poor_encoding(run: Run, tmp_path: Path, database_url: str) -> None:
    file = tmp_path / "naive.txt"
    file.write_text("naïve \u65e5\u672c", encoding="utf-8")
    run("add", file)

    def search(*options: str) -> str:
        return subprocess.run(
            command("search", "text", "--type", "vector", *options),
            check=True,
            capture_output=True,
            encoding="ascii",
            env=environment(database_url, PYTHONIOENCODING="ascii"),
        ).stdout

    assert "na?ve ??" in search()
    assert json.loads(search("--json"))[0]["content"] == "naïve \u65e5\u672c"


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


def test_health(run: Run, empty_database_url: str) -> None:
    assert json.loads(run("health", "--json").stdout)["healthy"] is True
    sick = run("health", code=1, LLMEMORY_DATABASE_URL=empty_database_url)
    assert re.search(r"^healthy +False$", sick.stdout, re.MULTILINE)
    # Looking must not migrate.
    run("health", code=1, LLMEMORY_DATABASE_URL=empty_database_url)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["serch", "x"], 2),
        (["search"], 2),
        (["search", "x", "--limit", "0"], 2),
        (["search", "x", "--limit", "many"], 2),
        (["search", " "], 2),
        (["search", "x", "--type", "txt"], 2),
        (["search", "x", "--bogus"], 2),
        (["list", "--offset", "-1"], 2),
        (["list", "--owner", ""], 2),
        (["add"], 2),
        (["add", ".", "--owner", " "], 2),
        (["add", ".", "--language", "klingon"], 2),
        (["db", "upgrade", "nonsense"], 2),
        (["db", "downgrade", "nonsense", "--yes"], 2),
        (["list", "--schema", "x" * 64], 1),
        (["list", "--database-url", "nonsense"], 1),
        (["list", "--database-url", "postgresql://postgres@127.0.0.1:1/none"], 1),
    ],
)
def test_errors_are_one_line(run: Run, arguments: list[str], code: int) -> None:
    done = run(*arguments, code=code)
    assert done.stdout == ""
    one_line(done.stderr)


def test_a_wrong_setting_is_one_line_without_its_value(run: Run) -> None:
    problem = one_line(run("list", code=1, LLMEMORY_POOL_SIZE="secret").stderr)
    assert "pool_size" in problem
    assert "secret" not in problem


def test_a_refused_password_is_not_shown(run: Run, database_url: str) -> None:
    scheme, rest = database_url.split("://", 1)
    _, _, place = rest.rpartition("@")
    url = f"{scheme}://nobody:geheim@{place}"
    done = run("list", "--database-url", url, code=1)
    assert "geheim" not in one_line(done.stderr)


def test_global_options_stand_anywhere(run: Run, notes: Path) -> None:
    run("--schema", "My-tenant", "add", notes)
    assert "notes/leave.md" in run("list", "--schema", "My-tenant").stdout
    assert "notes/leave.md" in run("list", LLMEMORY_SCHEMA_NAME="My-tenant").stdout
    assert ids(run) == {}


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


@pytest.mark.parametrize("schema", ["llmemory", "My-tenant"])
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


@pytest.mark.parametrize(
    "arguments",
    [["search", "note"], ["search", "note", "--json"], ["list"], ["db", "sql"], ["--help"]],
    ids=" ".join,
)
def test_a_closed_pipe_is_quiet(
    run: Run, notes: Path, database_url: str, arguments: list[str]
) -> None:
    run("add", notes)
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(database_url),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    problems = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert b"Traceback" not in problems
    assert b"Broken" not in problems


def test_ctrl_c_is_quiet_and_closes_the_connection(
    run: Run, notes: Path, database_url: str
) -> None:
    run("add", notes)
    # A shell's background jobs ignore SIGINT, and their children inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from llmemory.cli import main; sys.exit(main())"
    )
    with (
        psycopg.connect(database_url, autocommit=True) as observer,
        psycopg.connect(database_url, autocommit=True) as blocker,
    ):

        def waiting() -> list[str | None]:
            return [
                row[0]
                for row in observer.execute(
                    "SELECT wait_event_type FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'llmemory'"
                )
            ]

        with blocker.transaction():
            blocker.execute("LOCK TABLE llmemory.documents IN ACCESS EXCLUSIVE MODE")
            process = subprocess.Popen(
                [sys.executable, "-c", code, "list"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(database_url),
            )
            wait_until(lambda: waiting() == ["Lock"])
            process.send_signal(signal.SIGINT)
            output, problems = process.communicate(timeout=30)
        assert (process.returncode, output, problems) == (130, b"", b"")
        wait_until(lambda: waiting() == [])


def test_a_terminal_shows_progress_and_colour(run: Run, notes: Path, database_url: str) -> None:
    # Once before, so that the database is ready and the bar is all there is to show.
    run("stats")
    shown = in_terminal(command("add", notes), environment(database_url, TERM="xterm-256color"))
    assert "2/2" in shown
    assert "files/s" in shown
    assert "2 created, 0 replaced, 0 unchanged, 0 failed" in shown
    shown = in_terminal(command("list", "--limit", "0"), environment(database_url, TERM="xterm"))
    assert "\x1b[31merror: " in shown


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


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


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
