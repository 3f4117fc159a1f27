"""Upgrading the schemas of many tenants."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from migrations.databases import transaction
from plugins.server import execute
from psycopg import sql
from pydantic import SecretStr

from llmemory import Settings, ValidationError
from llmemory.schema import migrate
from llmemory.schema.all_schemas import SchemaUpgrade, upgrade_schemas

OLD = "0001"
# What is wrong with each, in the words of its problem.
BAD = {
    "broken": 'relation "broken.chunks" does not exist',
    "busy": "more than 0.2 s",
    "empty": "already exists",
    "foreign_": "version_num does not exist",
    "future": "newer version",
    "twice": "several revisions at once: 0001, 0002",
}
HOPELESS = BAD.keys() - {"broken", "busy"}


@pytest.fixture
def settings(empty_database_url: str) -> Settings:
    return Settings(database_url=SecretStr(empty_database_url))


def test_one_bad_schema_does_not_stop_the_others(
    settings: Settings, empty_database_url: str
) -> None:
    make_schemas(empty_database_url, OLD, "Ten-ant %1", *BAD)
    make_schemas(empty_database_url, migrate.HEAD, "current")
    execute(
        empty_database_url,
        sql.SQL("ALTER TABLE broken.chunks RENAME TO gone"),
        sql.SQL("UPDATE future.llmemory_version SET version_num = '9999'"),
        sql.SQL("INSERT INTO twice.llmemory_version VALUES ('0002')"),
        sql.SQL("ALTER TABLE foreign_.llmemory_version RENAME version_num TO number"),
        sql.SQL("DELETE FROM empty.llmemory_version"),
    )
    seen: list[SchemaUpgrade] = []
    with locked(empty_database_url, "busy"):
        done = upgrade_schemas(settings, processes=2, lock_timeout_s=0.2, on_progress=seen.append)
    assert sorted(seen, key=lambda result: result.schema) == done
    assert {result.schema: (result.status, result.found, result.revision) for result in done} == {
        "Ten-ant %1": ("upgraded", OLD, migrate.HEAD),
        "current": ("unchanged", migrate.HEAD, migrate.HEAD),
        **dict.fromkeys(BAD, ("failed", None, None)),
    }
    problems = {result.schema: result.problem for result in done if result.problem is not None}
    assert problems.keys() == BAD.keys()
    assert not [schema for schema in BAD if BAD[schema] not in problems[schema]], problems
    # What failed is as it was, and the next run does what is left.
    execute(
        empty_database_url,
        sql.SQL("ALTER TABLE broken.gone RENAME TO chunks"),
        *(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)) for name in HOPELESS),
    )
    again = upgrade_schemas(settings, processes=1)
    assert [(result.schema, result.status) for result in again] == [
        ("Ten-ant %1", "unchanged"),
        ("broken", "upgraded"),
        ("busy", "upgraded"),
        ("current", "unchanged"),
    ]


def test_a_limit_of_the_database_is_not_taken_for_ours(
    settings: Settings, empty_database_url: str
) -> None:
    make_schemas(empty_database_url, OLD, "busy")
    name = sql.Identifier(urlsplit(empty_database_url).path[1:])
    execute(empty_database_url, sql.SQL("ALTER DATABASE {} SET lock_timeout = 100").format(name))
    with locked(empty_database_url, "busy"):
        (done,) = upgrade_schemas(settings, processes=1)
    assert "more than lock_timeout" in str(done.problem)


def test_killed_and_run_again(settings: Settings, empty_database_url: str) -> None:
    make_schemas(empty_database_url, OLD, "first", "second")
    with ThreadPoolExecutor(1) as thread, locked(empty_database_url, "first", "second"):
        running = thread.submit(upgrade_schemas, settings, processes=2)
        wait_for_waiters(empty_database_url, 2)
        for process in multiprocessing.active_children():
            process.kill()
        assert {result.problem for result in running.result()} == {
            "A process that upgraded schemas ended. Run it again."
        }
    done = upgrade_schemas(settings, schemas=["second", "first"], processes=1)
    assert [(result.schema, result.status) for result in done] == [
        ("first", "upgraded"),
        ("second", "upgraded"),
    ]


def test_no_processes(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        upgrade_schemas(settings, processes=0)
    assert upgrade_schemas(settings) == []


def test_command_line(empty_database_url: str) -> None:
    make_schemas(empty_database_url, OLD, "old", "bad")
    execute(empty_database_url, sql.SQL("UPDATE bad.llmemory_version SET version_num = '9999'"))
    arguments = ["db", "upgrade", "--all-schemas", "--processes", "1", "--lock-timeout", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "llmemory.cli", *arguments],
        env={**os.environ, "LLMEMORY_DATABASE_URL": empty_database_url},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2 schemas: 1 upgraded, 0 unchanged, 1 failed\n"
    assert 'schema "bad": ' in done.stderr
    assert done.returncode == 1


def make_schemas(url: str, revision: str, *schemas: str) -> None:
    for schema in schemas:
        with transaction(url) as connection:
            migrate.upgrade(connection, schema, revision)


@contextmanager
def locked(url: str, *schemas: str) -> Iterator[None]:
    """Read from the chunks of `schemas` in a transaction that stays open."""
    with psycopg.connect(url) as connection:
        for schema in schemas:
            connection.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(schema, "chunks")))
        yield


def wait_for_waiters(url: str, count: int) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(f"{query} AND datname = current_database()").fetchone() != (
            count,
        ):
            time.sleep(0.02)
