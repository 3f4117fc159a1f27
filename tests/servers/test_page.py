"""The commands of docs/servers.md start what the page says, with the files that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from servers.running import BIN, free_port, running

PAGE = (Path(__file__).parents[2] / "docs" / "servers.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)).splitlines()
WEB = [command for command in COMMANDS if not command.startswith("celery")]


def test_all_commands_are_known() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        "gunicorn",
        "uwsgi",
        "celery",
        "uvicorn",
    }
    assert set(FILES) == {"app.py", "gunicorn.conf.py", "tasks.py", "api.py"}


@pytest.mark.parametrize("command", WEB)
def test_web_servers(command: str, database_url: str, tmp_path: Path) -> None:
    port = free_port()
    name, *arguments = command.replace(":8000", f"127.0.0.1:{port}").split()
    if name == "gunicorn":
        arguments += ["--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    elif name == "uvicorn":
        arguments += ["--port", str(port)]
    patched = "gevent --preload" in command
    write_files(tmp_path, *(["app.py", "api.py"] + ["gunicorn.conf.py"] * patched))
    with running(
        BIN / name,
        *arguments,
        database_url=database_url,
        folder=tmp_path,
        port=port,
        PYTHONPATH=str(tmp_path),
    ) as server:
        answer = httpx.post(f"{server.url}/search", params={"query": "leave"}, timeout=50)
        assert (answer.status_code, answer.json()) == (200, [])
        if name != "uvicorn":
            added = httpx.post(f"{server.url}/add", params={"name": "a"}, content="Leave.")
            assert added.json()["status"] == "created"
        if "--lazy-apps" in arguments:
            # Ended while one of them loads it, uWSGI hangs, whatever the application is.
            server.wait_for(lambda: server.log.count("WSGI app 0 (mountpoint='') ready") == 4)


def test_celery(database_url: str, tmp_path: Path) -> None:
    (command,) = set(COMMANDS) - set(WEB)
    name, *arguments = command.split()
    write_files(tmp_path, "tasks.py")
    with running(
        BIN / name,
        *arguments,
        database_url=database_url,
        folder=tmp_path,
        PYTHONPATH=str(tmp_path),
        PYTHONWARNINGS="default,ignore:You're running the worker with superuser",
    ) as worker:
        worker.wait_for(lambda: "tasks.add" in worker.log and "ready" in worker.log)


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(FILES[name])
