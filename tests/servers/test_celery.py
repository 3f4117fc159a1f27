"""A Celery worker whose processes are forked after the Memory was made, and after it was used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers.running import APPS, BIN, documents, running


@pytest.mark.parametrize("warm", ["", "yes"], ids=["cold", "warm"])
def test_prefork(warm: str, database_url: str, tmp_path: Path) -> None:
    variables = {"CELERY_FOLDER": str(tmp_path), "WARM": warm}
    if os.getuid() == 0:
        # Celery would rather not run as root.
        variables["PYTHONWARNINGS"] = "default,ignore:You're running the worker with superuser"
    command = [BIN / "celery", "--app", "celery_app", "worker", "--pool", "prefork"]
    command += ["--concurrency", "2", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
    with running(*command, database_url=database_url, folder=tmp_path, **variables) as worker:
        worker.wait_for(lambda: " ready." in worker.log)
        client = subprocess.run(
            [sys.executable, APPS / "celery_client.py"],
            env={**os.environ, "LLMEMORY_DATABASE_URL": database_url, **variables, "WARM": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert client.returncode == 0, client.stderr + worker.log
    done = json.loads(client.stdout)
    assert worker.process.pid not in done["pids"]
    assert done["hits"] == [20]
    assert documents(database_url) == 20
