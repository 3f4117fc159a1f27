"""Finding the files to add: those named, and those in folders that patterns choose."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from llmemory.errors import ValidationError
from llmemory.files import reading as files

__all__ = ["Found", "Patterns", "Source", "find_sources", "printable"]


class Source(NamedTuple):
    """A file to add.

    Attributes:
        external_id: What adding it again replaces; None takes the absolute path.
    """

    path: Path
    name: str
    external_id: str | None = None


@dataclass
class Found:
    """What was found.

    Attributes:
        sources: Files to add, each once.
        folders: Real paths of the folders that were searched from top to bottom.
    """

    sources: list[Source] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


class Patterns:
    """Which files of a folder are taken, as ``.gitignore`` would say it, relative to the folder."""

    def __init__(self, taken: Sequence[str] = (), ignored: Sequence[str] = ()) -> None:
        """Compile patterns.

        Args:
            taken: Files to take in place of those with the usual endings.
            ignored: Files and folders to leave out, stronger than `taken`.

        Raises:
            ValidationError: A pattern cannot be read.
        """
        try:
            self._taken = GitIgnoreSpec.from_lines(taken) if taken else None
            self._ignored = GitIgnoreSpec.from_lines(ignored)
        except ValueError as error:
            raise ValidationError(f"A pattern cannot be read: {error}") from error
        self._suffixes = files.folder_suffixes()

    def enters(self, folder: str) -> bool:
        """Return whether a subfolder is searched."""
        return not self._ignored.match_file(f"{folder}/")

    def takes(self, file: str) -> bool:
        """Return whether a file is taken."""
        if self._ignored.match_file(file):
            return False
        if self._taken is not None:
            return self._taken.match_file(file)
        return os.path.splitext(file)[1].lower() in self._suffixes  # noqa: PTH122 - thousands


def find_sources(
    paths: Iterable[Path], patterns: Patterns, *, on_unreadable: Callable[[str], None]
) -> Found:
    """Return the files that `paths` name or contain, without hidden ones in folders.

    Args:
        paths: Files, taken as they are, and folders.
        patterns: What to take from folders.
        on_unreadable: Called with the reason for each folder that cannot be read.
    """
    chosen: dict[str, Source] = {}
    found = Found()
    for path in paths:
        if not path.is_dir():
            chosen.setdefault(os.path.realpath(path), Source(path, files.name_of(path)))
            continue
        top = Path(os.path.realpath(path))
        problems: list[OSError] = []
        for folder, subfolders, names in os.walk(top, onerror=problems.append):
            inside = Path(folder).relative_to(top)
            subfolders[:] = sorted(
                name
                for name in subfolders
                if not name.startswith(".") and patterns.enters((inside / name).as_posix())
            )
            for name in sorted(names):
                file = Path(folder, name)
                if (
                    not name.startswith(".")
                    and patterns.takes((inside / name).as_posix())
                    and file.is_file()
                ):
                    shown = file.relative_to(top.parent).as_posix()
                    chosen.setdefault(os.path.realpath(file), Source(file, printable(shown)))
        for error in problems:
            on_unreadable(f"{error.filename} cannot be read: {error.strerror}.")
        if not problems:
            found.folders.append(top)
    found.sources = list(chosen.values())
    return found


def printable(path: str) -> str:
    """Return a path as text; bytes that are no UTF-8 show as replacement characters."""
    return path.encode(errors="surrogateescape").decode(errors="replace")
