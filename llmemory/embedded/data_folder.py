"""The folder of the data: which one, whether it may be used, and filling it with initdb."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from llmemory.embedded.account import SYSTEM_FOLDER, Account
from llmemory.embedded.programs import MAJOR, not_installed
from llmemory.errors import ConfigurationError, StorageUnavailable

__all__ = ["default_data_folder", "fill", "prepare"]

_INITDB_OPTIONS = (
    *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
)
_INITDB_SECONDS = 120


def default_data_folder() -> Path:
    """Return the user's data folder for llmemory, or one below ``/var/lib`` for root.

    Raises:
        ConfigurationError: The extra ``embedded`` is not installed.
    """
    if sys.platform != "win32" and os.geteuid() == 0:
        return SYSTEM_FOLDER / "postgres"
    try:
        import platformdirs
    except ImportError:
        raise not_installed() from None
    return platformdirs.user_data_path("llmemory", appauthor=False) / "postgres"


def prepare(folder: Path, account: Account) -> None:
    """Make the folders above the data folder and check that the account may use it.

    Raises:
        ConfigurationError: It is neither the account's nor free to take, or out of its reach.
    """
    _check(folder, account)
    account.make_way(folder.parent)
    if account.is_foreign and account.run(["test", "-x", folder.parent], 10).returncode:
        raise ConfigurationError(
            f"The server runs as the user {account.name}, who cannot pass through the folders "
            f"above {folder}. Give a data folder elsewhere, for example below {SYSTEM_FOLDER}."
        )


def fill(folder: Path, account: Account, programs: Path) -> None:
    """Run initdb unless it was run, and remove what it left in a crash. Hold the start lock.

    Raises:
        StorageUnavailable: initdb failed.
    """
    # It runs beside the data folder, so that a crash leaves nothing half-made in it.
    prefix = f".{folder.name}.initdb-"
    for entry in folder.parent.iterdir():
        if entry.name.startswith(prefix):
            shutil.rmtree(entry, ignore_errors=True)
    if (folder / "PG_VERSION").exists():
        return
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        account.take(temporary)
        _run_initdb(temporary, account, programs)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_initdb(folder: Path, account: Account, programs: Path) -> None:
    # Sorting and case come from PostgreSQL's own C.UTF-8, the same on every system. Full text
    # search still asks the system's LC_CTYPE which characters are letters, and C knows none
    # beyond ASCII.
    for character_type in ("C.UTF-8", "en_US.UTF-8", "C"):
        options = (*_INITDB_OPTIONS, f"--lc-ctype={character_type}")
        result = account.run([programs / "initdb", *options], _INITDB_SECONDS, PGDATA=str(folder))
        if "invalid locale name" not in result.stdout:
            break
    if result.returncode:
        end = "\n".join(result.stdout.strip().splitlines()[-5:])
        raise StorageUnavailable(
            f"PostgreSQL's initdb failed:\n{end}\nThe data folder could not be made."
        )


def _check(folder: Path, account: Account) -> None:
    """Refuse a folder that is neither the account's nor free to take."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"The data folder {folder} is not a folder. Give another one.")
    if status.st_uid not in (account.uid, os.geteuid()):
        raise ConfigurationError(
            f"The data folder {folder} belongs to another user (uid {status.st_uid}). Give "
            "another folder."
        )
    if not any(folder.iterdir()):
        return
    try:
        version = (folder / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise ConfigurationError(
            f"The data folder {folder} holds other files. Give an empty or a new folder."
        ) from None
    if version != MAJOR:
        raise ConfigurationError(
            f"The data folder {folder} holds data of PostgreSQL {version}, but the embedded "
            f"server is PostgreSQL {MAJOR}. Move the data with pg_dump, or give another folder."
        )
    if status.st_uid != account.uid:
        raise ConfigurationError(
            f"The data in {folder} belongs to uid {status.st_uid}, but the server runs as the "
            f"user {account.name}. Hand the folder over with chown -R, or give another folder."
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
