"""The command line: its help, exit codes and errors, and what it does as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from integration.helpers import PATIENCE_S, wait_until
from plugins.command_line import Run, command, environment, ids, in_terminal, one_line

import llmemory


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


@pytest.mark.direct("counts the server's connections, which are the pooler's")
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
            output, problems = process.communicate(timeout=PATIENCE_S)
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
