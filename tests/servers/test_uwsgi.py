"""uWSGI: forked before and after the application is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers.running import APPS, BIN, ask, documents, free_port, running, wait_for_workers


@pytest.mark.parametrize("loading", ["", "--lazy-apps"], ids=["prefork", "lazy"])
def test_workers_with_threads(loading: str, database_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [BIN / "uwsgi", "--master", "--processes", "4", "--enable-threads", "--threads", "2"]
    command += [*loading.split(), "--die-on-term", "--need-app", "--http-socket"]
    command += [f"127.0.0.1:{port}", "--module", "flask_app:app", "--pythonpath", APPS]
    with running(
        *command, database_url=database_url, folder=tmp_path, port=port, WARM="yes"
    ) as server:
        workers = wait_for_workers(server, 4)
        assert ask(server.url) <= workers
    assert server.process.pid not in workers
    assert documents(database_url) == 100
