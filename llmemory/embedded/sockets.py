"""The Unix socket over which a server is reached: its folder and its connection string."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
from pathlib import Path
from urllib.parse import quote

from llmemory.embedded.account import Account
from llmemory.errors import ConfigurationError

__all__ = ["NAME", "PORT", "answers", "make_folder", "url_of"]

PORT = 5432
NAME = f".s.PGSQL.{PORT}"

_PATH_LIMIT = 104  # sun_path on macOS and the BSDs; Linux has 108


def url_of(folder: Path) -> str:
    """Return the connection string of the server whose socket is in a folder."""
    return f"postgresql://postgres@/postgres?host={quote(os.fsencode(folder))}&port={PORT}"


def answers(folder: Path) -> bool:
    """Return whether a server listens on the socket in a folder."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(folder / NAME))
        except (TimeoutError, BlockingIOError):
            return True  # Its queue is full: it is busy, not gone.
        except OSError:
            return False
    return True


def make_folder(data_folder: Path, account: Account) -> Path:
    """Return the folder for the socket: the data folder, or one in /tmp if its path is unfit.

    Raises:
        ConfigurationError: Somebody else has made the folder in /tmp.
    """
    path = str(data_folder / NAME)
    # Both PostgreSQL and its clients read the name of the folder as a list.
    if len(os.fsencode(path)) < _PATH_LIMIT and not re.search(r'[,"\\\n]|\s/', path):
        return data_folder
    digest = hashlib.sha256(f"{account.uid}:{data_folder}".encode(errors="replace"))
    folder = Path("/tmp") / f"llmemory-{digest.hexdigest()[:20]}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        account.take(folder)
    status = folder.lstat()
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if not private or status.st_uid != account.uid:
        raise ConfigurationError(
            f"The folder {folder} for the server's socket is not a private folder of the user "
            f"{account.name}. Remove it, or give a data folder with a shorter path."
        )
    return folder
