"""Servers of a test's own, from the wheel's programs: to be killed, restarted and replicated."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from os import kill
from pathlib import Path

import psycopg
import pytest

from llmemory.embedded.account import unprivileged_account
from llmemory.embedded.programs import find_programs
from plugins.poolers import free_port

SECONDS = 30.0


class Cluster:
    """A PostgreSQL server on a port of 127.0.0.1, whose superuser ``postgres`` needs no password.

    Args:
        folder: For its data and log; empty.
        source: A running one to be a streaming replica of.
    """

    def __init__(self, folder: Path, source: Cluster | None = None) -> None:
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._account = unprivileged_account()
        self._programs = find_programs(self._account)
        self._account.take(folder)
        self._data = folder / "data"
        if source is None:
            self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8")
        else:
            options = ("--checkpoint=fast", "--write-recovery-conf", "--dbname", source.url)
            self._run("pg_basebackup", *options)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        log = self._data.with_name("server.log")
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._run("pg_ctl", "start", "-w", "-s", f"--log={log}", f"--options={options}")
                return
            except AssertionError:
                # Those whose main process was killed hold the shared memory for a moment longer.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it, by default without a farewell to anyone."""
        self._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def kill(self) -> None:
        """Kill its main process, as the system does when memory runs out; the others follow it."""
        kill(int(self._data.joinpath("postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    @property
    def is_replica(self) -> bool:
        """Whether it takes what it has from another server."""
        with psycopg.connect(self.url) as connection:
            return bool((connection.execute("SELECT pg_is_in_recovery()").fetchone() or (0,))[0])

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self._programs / program, *arguments, f"--pgdata={self._data}"]
        # Not through a pipe: the server that pg_ctl starts would hold its end.
        with tempfile.TemporaryFile() as output:
            done = self._account.run(command, SECONDS, output=output.fileno())
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read().decode()}"


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """``make_cluster(source)``: a server that runs until the test has ended."""
    with ExitStack() as stack:

        def make(source: Cluster | None = None) -> Cluster:
            # Under root it runs as another user, who must be able to pass.
            folder = Path(tempfile.mkdtemp(prefix="llmemory-cluster-", dir="/tmp"))
            folder.chmod(0o755)
            stack.callback(shutil.rmtree, folder)
            cluster = Cluster(folder, source)
            cluster.start()
            stack.callback(cluster.stop)
            return cluster

        yield make
