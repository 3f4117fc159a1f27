"""The web services in examples/, started by the command that each names, asked over HTTP."""

from __future__ import annotations

import ast
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]
PORT_OPTIONS = {"flask": "--port {}", "uvicorn": "--port {}", "python": "--noreload {}"}


@pytest.fixture(params=["flask_app", "fastapi_app", "django_app"])
def service(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of the example, which must not complain of anything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *arguments = command_of(REPOSITORY / "examples" / f"{request.param}.py")
    module = [] if program == "python" else ["-m", program]
    options = PORT_OPTIONS[program].format(port).split()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *module, *arguments, *options],
            cwd=REPOSITORY,
            env=os.environ | {"LLMEMORY_DATABASE_URL": database_url, "LLMEMORY_EMBEDDER": "hash"},
            stdout=output,
            stderr=output,
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        try:
            wait_for(client, process, log)
            yield client
        finally:
            process.terminate()
            process.wait(10)
    assert "Traceback" not in log.read_text()


def command_of(example: Path) -> list[str]:
    """Return the last of the commands at the example's top."""
    described = ast.get_docstring(ast.parse(example.read_text())) or ""
    commands = [line for line in described.splitlines() if line.startswith("    ")]
    return shlex.split(commands[-1])


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            assert client.get("/health").status_code == 200
            return
        except httpx.ConnectError:
            time.sleep(0.1)
    pytest.fail(f"the example does not answer:\n{log.read_text()}")


def test_the_service(service: httpx.Client) -> None:
    documents = "/workspaces/acme/documents"
    handbook = {
        "document_name": "Staff handbook",
        "content": "# Leave\n\nStaff have 25 days of leave.",
        "document_type": "markdown",
        "external_id": "handbook",
        "metadata": {"department": "people"},
        "document_date": "2025-03-01T00:00:00Z",
    }
    added = service.post(documents, json=handbook, headers={"X-User-Id": "anna"})
    assert (added.status_code, added.json()["status"]) == (200, "created")
    again = service.post(documents, json=handbook, headers={"X-User-Id": "anna"})
    assert again.json()["status"] == "unchanged"

    page = service.get(documents, params={"limit": 5, "document_type": "markdown"}).json()
    assert [document["id_at_origin"] for document in page["documents"]] == ["anna"]
    found = service.post(
        "/workspaces/acme/search",
        json={"query": "leave", "limit": 1, "metadata_filter": {"department": "people"}},
    ).json()
    assert [hit["headings"] for hit in found["results"]] == [["Leave"]]
    other = service.post("/workspaces/other/search", json={"query": "leave"}).json()
    assert other["results"] == []

    document = f"{documents}/{added.json()['document_id']}"
    assert service.get(document).json()["content"] == handbook["content"]
    assert service.get(document.replace("acme", "other")).status_code == 404
    assert service.delete(document).status_code == 204
    missing = service.delete(document)
    assert (missing.status_code, set(missing.json())) == (404, {"detail"})

    blank = service.post(documents, json=handbook | {"content": " "}, headers={"X-User-Id": "a"})
    assert (blank.status_code, set(blank.json())) == (422, {"detail"})
    health = service.get("/health").json()
    assert health["healthy"], health
