"""The command that adds files and folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

from llmemory.cli.folders import Patterns, Source, find_sources, printable
from llmemory.cli.pruning import find_gone, remove_gone
from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import confirmed, output, print_error, print_remark, remarks
from llmemory.errors import ValidationError
from llmemory.files import reading as files
from llmemory.settings import Settings
from llmemory.text.languages import AUTO, LANGUAGES, language_named
from llmemory.types import DocumentAddResult, DocumentType, NewDocument
from llmemory.types import Progress as BulkProgress
from llmemory.validation.documents import checked_document
from llmemory.validation.metadata import is_blank
from llmemory.validation.values import checked_identifier

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory

__all__ = ["Addition", "add", "add_sources"]


def _check_language(kind: object, value: str | None) -> None:
    if value is not None and value.lower() != AUTO and language_named(value) is None:
        raise ValueError(f"It is none of {AUTO}, {', '.join(LANGUAGES)}.")


CHOSEN_LANGUAGE = Parameter(validator=_check_language)


@dataclass
class Addition:
    """What adding files has done."""

    results: list[DocumentAddResult] = field(default_factory=list)
    failed: int = 0
    skipped: int = 0
    removed: int = 0

    def summary(self) -> str:
        """Return the counts as one line."""
        count = Counter(result.status for result in self.results)
        others = "".join(
            f", {number} {name}"
            for name, number in (("skipped", self.skipped), ("removed", self.removed))
            if number
        )
        return (
            f"{count['created']} created, {count['replaced']} replaced, "
            f"{count['unchanged']} unchanged, {self.failed} failed{others}"
        )


def add(
    paths: Annotated[list[Path], Parameter(name="PATH")],
    /,
    *,
    owner: str = "default",
    language: Annotated[str | None, CHOSEN_LANGUAGE] = None,
    document_type: Annotated[DocumentType | None, Parameter(name="--type")] = None,
    glob: list[str] | None = None,
    ignore: list[str] | None = None,
    prune: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    force: bool = False,
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
        glob: Take the files of folders that match this pattern, in place of those above; written
            as in .gitignore, relative to the folder. May be given several times.
        ignore: Leave out the files and subfolders that match this pattern. May be given several
            times.
        prune: Then remove the documents that came from these folders and whose files are gone.
        dry_run: Only print what would be added and removed.
        yes: Remove without asking.
        force: Remove even where nothing would be left of a folder, which is refused otherwise:
            its disk could just not be mounted.
        settings: What the global options and the environment say.
    """
    checked_identifier(owner, "owner_id", settings)
    unreadable: list[str] = []
    found = find_sources(paths, Patterns(glob or (), ignore or ()), on_unreadable=unreadable.append)
    for problem in unreadable:
        print_error(problem)
    addition = Addition(failed=len(unreadable))
    if found.sources and dry_run:
        for source in found.sources:
            output.print(f"would add {printable(str(source.path))}", soft_wrap=True)
    elif found.sources:
        with_memory(
            settings,
            partial(
                add_sources,
                sources=found.sources,
                addition=addition,
                owner=owner,
                language=language,
                document_type=document_type,
            ),
        )
    elif not unreadable:
        names = ", ".join(glob or sorted(f"*{suffix}" for suffix in files.folder_suffixes()))
        remarks.print(f"No file named {names} found.", soft_wrap=True)
    if prune:
        _prune(found.folders, addition, owner, settings, dry_run=dry_run, yes=yes, force=force)
    if not dry_run:
        output.print(addition.summary())
    return 1 if addition.failed else 0


def _prune(
    folders: Sequence[Path],
    addition: Addition,
    owner: str,
    settings: Settings,
    *,
    dry_run: bool,
    yes: bool,
    force: bool,
) -> None:
    for gone in with_memory(settings, partial(find_gone, owner=owner, folders=folders)):
        count = len(gone.external_ids)
        if not count:
            continue
        if dry_run:
            for external_id in gone.external_ids:
                output.print(f"would remove {printable(external_id)}", soft_wrap=True)
        elif gone.is_everything and not force:
            addition.failed += 1
            print_error(
                f"All {count} documents from {gone.folder} would go; none was removed. If the "
                "files are gone indeed, and the disk is mounted, say --force."
            )
        elif yes or confirmed(f"Remove {count} documents whose files in {gone.folder} are gone?"):
            addition.removed += with_memory(settings, partial(remove_gone, owner=owner, gone=gone))
        else:
            remarks.print(f"{count} documents whose files are gone were kept.")


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
    added: list[Path] = []
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
                        print_remark(f"{printable(str(source.path))} is empty; skipped.")
                        show_progress()
                    else:
                        added.append(source.path)
                        yield document

        results = await memory.add_documents(
            documents(), on_progress=on_progress, on_error="collect"
        )
    for path, result in zip(added, results, strict=True):
        if result.error is not None:
            addition.failed += 1
            print_error(f"{printable(str(path))}: {result.error}")
    addition.results = [result for result in results if result.error is None]


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
        # Told at once, and by the file's path.
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
