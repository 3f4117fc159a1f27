"""The commands ``llmemory worker`` and ``llmemory jobs``, and what signals do to a worker."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from integration.helpers import PATIENCE_S, fetch, wait_until
from integration.workers import asking, left, openai_embedder, started_worker, wait_until_ready
from plugins.command_line import Run
from plugins.openai_server import OpenAIServer, slowly, status

from llmemory import HashEmbedder

STATES = "SELECT state, attempts, leased_until > now() FROM llmemory.embedding_jobs"


def test_it_works_until_the_first_signal(database_url: str) -> None:
    left(database_url, HashEmbedder(), "One.", "Two.")
    with started_worker(database_url) as process:
        wait_until_ready(process)
        wait_until(lambda: not fetch(database_url, STATES))
        left(database_url, HashEmbedder(), "Three.")
        wait_until(lambda: not fetch(database_url, STATES))
        process.send_signal(signal.SIGTERM)
        output, problems = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (0, "3 documents finished\n")
    assert problems == "Stopping. A second signal ends at once.\n"


@pytest.mark.parametrize(
    ("grace_s", "silence_s", "remaining"),
    [("60", 1.5, []), ("0.1", 60, [("queued", 0, None)])],
    ids=["finishes", "gives back"],
)
def test_what_it_holds_at_a_signal(
    database_url: str,
    openai_server: OpenAIServer,
    grace_s: str,
    silence_s: float,
    remaining: list[Any],
) -> None:
    left(database_url, openai_embedder(openai_server.url), "Text.")
    openai_server.answers(slowly(silence_s=silence_s))
    with started_worker(database_url, "--grace-s", grace_s, **asking(openai_server)) as process:
        wait_until_ready(process)
        wait_until(lambda: openai_server.requests)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert fetch(database_url, STATES) == remaining


def test_a_second_signal_ends_at_once(database_url: str, openai_server: OpenAIServer) -> None:
    left(database_url, openai_embedder(openai_server.url), "Text.")
    openai_server.answers(slowly(silence_s=60))
    with started_worker(database_url, **asking(openai_server)) as process:
        wait_until_ready(process)
        wait_until(lambda: openai_server.requests)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Stopping.")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    assert fetch(database_url, STATES) == [("queued", 1, True)]


def test_once_does_what_is_due(run: Run, database_url: str) -> None:
    left(database_url, HashEmbedder(), "One.", "Two.")
    left(database_url, HashEmbedder(), "Three.", owner="other")
    assert run("worker", "--once", "--owner", "other").stdout == "1 documents finished\n"
    assert run("worker", "--once").stdout == "2 documents finished\n"


def test_once_fails_if_documents_are_left(run: Run, database_url: str) -> None:
    with OpenAIServer() as server:
        left(database_url, openai_embedder(server.url), "Secret text.")
        server.answers(status(400))
        variables = asking(server)
        done = run("worker", "--once", code=1, **variables)
        assert done.stderr.startswith("error: ")
        assert "`llmemory jobs list`" in done.stderr
        assert "Secret" not in done.stderr + run("jobs", "list", **variables).stdout


def test_jobs_are_listed_and_requeued(run: Run, database_url: str) -> None:
    assert run("jobs", "list").stdout == ""
    left(database_url, HashEmbedder(), "One.")
    fetch(
        database_url,
        "UPDATE llmemory.embedding_jobs "
        "SET state = 'failed', attempts = 3, last_error = 'It broke.'",
    )
    listed = run("jobs", "list").stdout
    assert "failed       3" in listed
    assert "acme: name, It broke." in listed
    (found,) = json.loads(run("jobs", "list", "--state", "failed", "--json").stdout)
    assert found["last_error"] == "It broke."
    assert "failed 1" in run("health").stdout
    assert "waiting 0, running 0, failed 1, oldest s -" in run("stats", "--owner", "acme").stdout
    assert run("jobs", "requeue", "--owner", "nobody").stdout == "0 requeued\n"
    assert run("jobs", "requeue", found["document_id"]).stdout == "1 requeued\n"
    assert "waiting      0" in run("jobs", "list", "--owner", "acme").stdout
