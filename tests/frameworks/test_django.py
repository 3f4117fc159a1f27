"""The Django application: the project beside this file, run by its own commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

PROJECT = Path(__file__).parent / "django_project"


def manage(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project with Django's warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=PROJECT,
        env=os.environ | {"DATABASE_URL": url, **variables},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def fetch_column(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query.encode())]


@pytest.mark.parametrize("options", [[], ["--parallel=2"]], ids=["one process", "parallel"])
def test_the_project_passes_its_tests(empty_database_url: str, options: list[str]) -> None:
    done = manage(empty_database_url, "test", *options)
    assert done.returncode == 0, done.stderr
    assert "Found 15 test(s)." in done.stdout
    # The runner could drop its databases, and nobody touched the project's own.
    name = urlsplit(empty_database_url).path.removeprefix("/")
    databases = fetch_column(empty_database_url, "SELECT datname FROM pg_database")
    assert [found for found in databases if name in found] == [name]
    schemas = fetch_column(empty_database_url, "SELECT nspname FROM pg_namespace")
    assert "llmemory" not in schemas


def test_migrations_of_django_and_ours_are_apart(empty_database_url: str) -> None:
    migrated = manage(empty_database_url, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    upgraded = manage(empty_database_url, "llmemory", "upgrade")
    assert (upgraded.returncode, upgraded.stderr) == (0, "")
    tables = (
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = '{}'::regnamespace"
    )
    assert "documents" in fetch_column(empty_database_url, tables.format("llmemory"))
    of_django = fetch_column(empty_database_url, tables.format("public"))
    assert "django_migrations" in of_django
    assert all(name.startswith(("auth_", "django_")) for name in of_django)
    unchanged = manage(empty_database_url, "makemigrations", "--check")
    assert (unchanged.returncode, unchanged.stdout) == (0, "No changes detected\n")


def test_a_wrong_setting_stops_every_command(empty_database_url: str) -> None:
    done = manage(empty_database_url, "llmemory", "status", LLMEMORY_POOL_SIZE="many")
    assert done.returncode == 1
    assert "(llmemory.E001) Invalid settings: pool_size" in done.stderr
