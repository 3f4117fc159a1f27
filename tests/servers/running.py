"""Starting a server on loopback, asking it from many threads, and seeing that it ends cleanly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

APPS = Path(__file__).parent / "apps"
BIN = Path(sys.executable).parent
START_S = 60.0
STOP_S = 30.0
COMPLAINT = re.compile(r"Traceback|Warning|warning|\bError\b|\[ERROR\]|\[CRITICAL\]|CRITICAL/")
# gunicorn and Django leave the socket that they listen on to the end of the process, and Django's
# reloader does not wait long for the process that it has started. Workers that end at once write
# into each other's lines.
OF_THE_SERVER = re.compile(
    r"(ResourceWarning: )+unclosed <socket.socket [^>]*laddr=\([^>)]*\)>"
    r"|^.*ResourceWarning: subprocess \d+ is still running$|^  _warn\(.subprocess.*$"
    r"|ResourceWarning: Enable tracemalloc[^\n]*",
    re.MULTILINE,
)


@dataclass
class Program:
    """A program with its log, in a session of its own so that none of its children is missed."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int = 0

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.log_file.read_text()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it is ready; fail with its log if it ends or is too slow."""
        deadline = time.monotonic() + START_S
        while not is_ready():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self, database_url: str, *, by: signal.Signals, exit_code: int) -> None:
        """End it as an operator would, and check that nothing is left of it."""
        if by is signal.SIGINT:
            # Ctrl-C in a terminal reaches the children as well.
            os.killpg(self.process.pid, by)
        else:
            self.process.send_signal(by)
        assert self.process.wait(STOP_S) == exit_code, self.log
        assert wait_until(lambda: not self._has_processes(), 5), self.log
        lines = OF_THE_SERVER.sub("", self.log).splitlines()
        assert not [line for line in lines if COMPLAINT.search(line)], self.log
        assert wait_until(lambda: connections(database_url) == 0), self.log

    def kill(self) -> None:
        """End it and its children at once."""
        if self._has_processes():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def _has_processes(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


@contextmanager
def running(
    *command: str | Path,
    database_url: str,
    folder: Path,
    by: signal.Signals = signal.SIGTERM,
    exit_code: int = 0,
    port: int = 0,
    **environment: str,
) -> Iterator[Program]:
    """Run a command until the block ends, and then end it with a signal.

    With a port, wait first until the server listens there.
    """
    log_file = folder / "server.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "LLMEMORY_DATABASE_URL": database_url,
                "PYTHONPATH": str(APPS),
                "PYTHONWARNINGS": "default",
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
        )
    program = Program(process, log_file, port)
    try:
        if port:
            program.wait_for(lambda: is_listening(port))
        yield program
        program.stop(database_url, by=by, exit_code=exit_code)
    finally:
        program.kill()


def ask(url: str, count: int = 200, *, paths: tuple[str, str] = ("/add", "/search")) -> set[int]:
    """Send requests from 16 threads, adding and searching in turn; all must be answered.

    Each has a connection of its own, so that all workers get some.

    Returns:
        The ids of the processes that answered.
    """
    with (
        httpx.Client(base_url=url, timeout=30, headers={"Connection": "close"}) as client,
        ThreadPoolExecutor(16) as threads,
    ):

        def one(number: int) -> int:
            answer = client.post(paths[number % 2], params={"name": f"document {number}"})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["pid"])

        return set(threads.map(one, range(count)))


def wait_for_workers(server: Program, count: int) -> set[int]:
    """Send searches until that many processes have answered; return their ids."""
    workers: set[int] = set()

    def all_have_answered() -> bool:
        workers.update(ask(server.url, 32, paths=("/search", "/search")))
        return len(workers) == count

    server.wait_for(all_have_answered)
    return workers


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    """Return whether something accepts connections on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Return whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def connections(database_url: str) -> int:
    """Count the connections of others to the database."""
    return _count(
        database_url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )


def documents(database_url: str) -> int:
    """Count the documents that are stored."""
    return _count(database_url, "SELECT count(*) FROM llmemory.documents")


def _count(database_url: str, query: str) -> int:
    with psycopg.connect(database_url) as connection:
        (count,) = connection.execute(query.encode()).fetchone() or (0,)
    return int(count)
