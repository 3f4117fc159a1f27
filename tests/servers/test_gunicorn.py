"""gunicorn: four workers of every kind, with the memory made before and after the fork."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers.running import APPS, BIN, ask, documents, free_port, running, wait_for_workers

KINDS = {
    "sync": (),
    "gthread": ("--threads", "4"),
    "gevent": ("--config", APPS / "patched.py"),
}


@pytest.mark.parametrize("loading", ["", "--preload"], ids=["each", "preload"])
@pytest.mark.parametrize("kind", KINDS)
def test_four_workers(kind: str, loading: str, database_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [BIN / "gunicorn", "--worker-class", kind, "--workers", "4", *KINDS[kind]]
    command += [*loading.split(), "--bind", f"127.0.0.1:{port}", "flask_app:app"]
    command += ["--no-control-socket"]
    with running(
        *command, database_url=database_url, folder=tmp_path, port=port, WARM=loading
    ) as server:
        workers = wait_for_workers(server, 4)
        assert ask(server.url) <= workers
    assert server.process.pid not in workers
    assert documents(database_url) == 100
