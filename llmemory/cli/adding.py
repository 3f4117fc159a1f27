"""The command that adds files and folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import anyio.to_thread
from cyclopts import Parameter
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from llmemory import files
from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import output, print_error, print_remark, remarks
from llmemory.errors import ValidationError
from llmemory.languages import AUTO, LANGUAGES
from llmemory.metadata import is_blank
from llmemory.settings import Settings
from llmemory.types import DocumentAddResult, DocumentType, NewDocument
from llmemory.types import Progress as BulkProgress
from llmemory.validation import checked_document, checked_identifier

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["Addition", "Source", "add", "add_sources"]

CHOSEN_LANGUAGE = Parameter(choices=(AUTO, *LANGUAGES), show_choices=False)


class Source(NamedTuple):
    """A file to add.

    Attributes:
        external_id: What adding it again replaces; None takes the absolute path.
    """

    path: Path
    name: str
    external_id: str | None = None


@dataclass
class Addition:
    """What adding files has done."""

    results: list[DocumentAddResult] = field(default_factory=list)
    failed: int = 0
    skipped: int = 0

    def summary(self) -> str:
        """Return the counts as one line."""
        count = Counter(result.status for result in self.results)
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return (
            f"{count['created']} created, {count['replaced']} replaced, "
            f"{count['unchanged']} unchanged, {self.failed} failed{skipped}"
        )


def add(
    paths: Annotated[list[Path], Parameter(name="PATH")],
    /,
    *,
    owner: str = "default",
    language: Annotated[
        str | None, Parameter(choices=(AUTO, *LANGUAGES), show_choices=False)
    ] = None,
    document_type: Annotated[DocumentType | None, Parameter(name="--type")] = None,
    settings: GivenSettings,
) -> int:
    """Add files, and folders of them, so that they can be searched.

    Of a folder and its subfolders the files named `*.md`, `*.markdown`, `*.txt`, `*.rst` and
    `*.text` are taken, without hidden ones; with the extra `files` also `*.pdf`, `*.docx`,
    `*.pptx`, `*.html`, `*.htm` and `*.eml`. A file named by itself may be any text in UTF-8.

    Adding a path again replaces what it was; a file that has not changed costs next to nothing,
    so an interrupted command can simply be given again. An empty file is skipped. A file that
    cannot be added is reported, the others are added all the same, and the exit code is 1.

    Args:
        paths: Files or folders.
        owner: Whose documents they will be.
        language: Language of the texts, such as german, for the search by words; the default is
            the setting LLMEMORY_LANGUAGE.
        document_type: What kind of texts they are; the default is told by the file's ending.
        settings: What the global options and the environment say.
    """
    checked_identifier(owner, "owner_id", settings)
    unreadable: list[str] = []
    sources = find_sources(paths, on_unreadable=unreadable.append)
    for problem in unreadable:
        print_error(problem)
    addition = Addition(failed=len(unreadable))
    if sources:
        with_memory(
            settings,
            partial(
                add_sources,
                sources=sources,
                addition=addition,
                owner=owner,
                language=language,
                document_type=document_type,
            ),
        )
    elif not unreadable:
        names = " ".join(sorted(f"*{suffix}" for suffix in files.folder_suffixes()))
        remarks.print(f"No file named {names} found.")
    output.print(addition.summary())
    return 1 if addition.failed else 0


def find_sources(paths: Iterable[Path], *, on_unreadable: Callable[[str], None]) -> list[Source]:
    """Return the files that `paths` name or contain, each once.

    Args:
        paths: Files, taken as they are, and folders, searched for those that can be read.
        on_unreadable: Called with the reason for each folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        on_unreadable(f"{error.filename} cannot be read: {error.strerror}.")

    found: dict[str, Source] = {}
    suffixes = files.folder_suffixes()
    for path in paths:
        if not path.is_dir():
            found.setdefault(os.path.realpath(path), Source(path, files.name_of(path)))
            continue
        top = Path(os.path.realpath(path))
        for folder, subfolders, names in os.walk(top, onerror=refuse):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                is_wanted = file.suffix.lower() in suffixes and not name.startswith(".")
                if is_wanted and file.is_file():
                    shown = file.relative_to(top.parent).as_posix()
                    found.setdefault(os.path.realpath(file), Source(file, _printable(shown)))
    return list(found.values())


def _printable(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="replace")


async def add_sources(
    memory: AsyncMemory,
    sources: Sequence[Source],
    addition: Addition,
    *,
    owner: str,
    language: str | None = None,
    document_type: DocumentType | None = None,
) -> None:
    """Add files to `memory` under a progress bar, holding only some of them in memory at a time.

    Args:
        memory: Where to add them.
        sources: The files.
        addition: Told what was done. A file that cannot be added is printed and counted.
        owner: Whose documents they will be.
        language: As in ``AsyncMemory.add_document``.
        document_type: None tells it by each file's ending.
    """
    read = partial(
        _read,
        owner=owner,
        language=language,
        document_type=document_type,
        settings=memory.settings,
    )
    passed_over_before = addition.failed + addition.skipped
    with _progress_bar() as bar:
        task = bar.add_task("Adding", total=len(sources))
        written = 0

        def show_progress() -> None:
            passed_over = addition.failed + addition.skipped - passed_over_before
            bar.update(task, completed=written + passed_over)

        def on_progress(progress: BulkProgress) -> None:
            nonlocal written
            written = progress.documents
            show_progress()

        async def documents() -> AsyncIterator[NewDocument]:
            for source in sources:
                try:
                    document = await anyio.to_thread.run_sync(read, source)
                except ValidationError as error:
                    addition.failed += 1
                    print_error(str(error))
                    show_progress()
                else:
                    if document is None:
                        addition.skipped += 1
                        print_remark(f"{_printable(str(source.path))} is empty; skipped.")
                        show_progress()
                    else:
                        yield document

        addition.results = await memory.add_documents(documents(), on_progress=on_progress)


def _read(
    source: Source,
    *,
    owner: str,
    language: str | None,
    document_type: DocumentType | None,
    settings: Settings,
) -> NewDocument | None:
    """Return the file as a document, or None if there is no text in it."""
    found = files.read_file(source.path, settings)
    if is_blank(found.content):
        return None
    document = NewDocument(
        owner_id=owner,
        document_name=(
            found.document_name if found.document_type is DocumentType.EMAIL else source.name
        ),
        content=found.content,
        document_type=found.document_type if document_type is None else document_type,
        id_at_origin=found.id_at_origin,
        additional_metadata=found.metadata,
        document_date=found.document_date,
        external_id=source.external_id or files.external_id_of(source.path, settings),
        language=language,
    )
    try:
        # A bulk call ends at the first document it refuses; here the others go on.
        checked_document(document, settings)
    except ValidationError as error:
        raise ValidationError(f"{source.path}: {error}", field=error.field) from None
    return document


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        elapsed_s = task.finished_time or task.elapsed
        rate = f"{task.completed / elapsed_s:.0f}" if elapsed_s else "-"
        return Text(f"{rate} files/s", style="dim")


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=remarks,
        disable=not remarks.is_terminal,
    )
