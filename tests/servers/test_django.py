"""Django: initialised at import, then used from the loops of its views, sync and async."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from servers.running import APPS, BIN, Program, ask, documents, free_port, running

ASYNC = ("/add", "/search")
SYNC = ("/sync/add", "/sync/search")


def use(server: Program, database_url: str) -> None:
    ask(server.url, 100, paths=ASYNC)
    ask(server.url, 100, paths=SYNC)
    assert documents(database_url) == 100


@pytest.mark.parametrize("reloading", [["--noreload"], []], ids=["noreload", "reload"])
def test_dev_server(reloading: list[str], database_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, APPS / "django_app.py", "runserver", *reloading]
    with running(
        *command,
        f"127.0.0.1:{port}",
        database_url=database_url,
        folder=tmp_path,
        port=port,
        by=signal.SIGINT,
    ) as server:
        use(server, database_url)


def test_uvicorn(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [BIN / "uvicorn", "--port", str(port), "--lifespan", "off", "django_app:asgi"]
    with running(
        *command, database_url=database_url, folder=tmp_path, port=port, exit_code=-signal.SIGTERM
    ) as server:
        use(server, database_url)


def test_gunicorn(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [BIN / "gunicorn", "--threads", "4", "--bind", f"127.0.0.1:{port}"]
    command += ["--no-control-socket", "django_app:wsgi"]
    with running(*command, database_url=database_url, folder=tmp_path, port=port) as server:
        use(server, database_url)
