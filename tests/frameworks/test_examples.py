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
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from integration.helpers import fetch

REPOSITORY = Path(__file__).parents[2]
PORT_OPTIONS = {"flask": "--port {}", "uvicorn": "--port {}", "python": "--noreload {}"}


@pytest.fixture(params=["flask_app", "fastapi_app", "django_app"])
def service(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of the example, which must not complain of anything."""
    with running(request.param, database_url, tmp_path / "log") as client:
        yield client


@pytest.fixture(params=["flask_orders", "fastapi_orders"])
def shop(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of an example with orders."""
    with running(request.param, database_url, tmp_path / "log") as client:
        yield client


@contextmanager
def running(name: str, database_url: str, log: Path) -> Iterator[httpx.Client]:
    """Start an example and give a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *arguments = command_of(REPOSITORY / "examples" / f"{name}.py")
    module = [] if program == "python" else ["-m", program]
    options = PORT_OPTIONS[program].format(port).split()
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


def test_an_order_and_its_document(shop: httpx.Client, database_url: str) -> None:
    """They appear, change and go together, or not at all."""

    def state() -> list[tuple[int, str | None]]:
        return fetch(
            database_url,
            "SELECT amount, content FROM orders FULL JOIN llmemory.documents AS documents "
            "ON documents.owner_id = document_owner_id "
            "AND documents.document_id = orders.document_id",
        )

    def save(number: int, amount: int, text: str) -> int:
        body = {"amount": amount, "text": text}
        return shop.put(f"/workspaces/acme/orders/{number}", json=body).status_code

    assert save(1, 0, "Two chairs.") == 409
    assert save(1, 5, " ") == 422
    assert state() == []
    assert save(1, 5, "Two chairs.") == 200
    assert state() == [(5, "Two chairs.")]
    assert save(1, -1, "Four tables.") == 409
    assert state() == [(5, "Two chairs.")]
    assert save(1, 7, "Four tables.") == 200
    assert state() == [(7, "Four tables.")]
    assert save(2, 9, "One table and a lamp.") == 200

    orders = "/workspaces/acme/orders"
    found = shop.get(orders, params={"query": "tables", "least": 8}).json()
    assert [(order["number"], order["amount"]) for order in found] == [(2, 9)]
    found = shop.get(orders, params={"query": "four tables"}).json()
    assert [order["number"] for order in found] == [1, 2]
    assert shop.get("/workspaces/other/orders", params={"query": "tables"}).json() == []

    assert shop.delete(f"{orders}/1").status_code == 204
    assert shop.delete(f"{orders}/1").status_code == 404
    assert state() == [(9, "One table and a lamp.")]
