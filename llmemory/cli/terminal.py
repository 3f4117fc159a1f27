"""What commands print: to people, wrapped and coloured in a terminal, or as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from html import unescape
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from llmemory.types import Document, EmbeddingJob, MaintenanceProgress, SearchResult

__all__ = [
    "confirmed",
    "output",
    "print_content",
    "print_documents",
    "print_error",
    "print_hits",
    "print_jobs",
    "print_json",
    "print_remark",
    "print_values",
    "progress_bar",
    "progress_line",
    "remarks",
]

# soft_wrap is asked for wherever a line may be read by a program or copied.
output = Console(markup=False, highlight=False, emoji=False)
remarks = Console(stderr=True, markup=False, highlight=False, emoji=False)

READING_WIDTH = 100
_MARK = re.compile("</?mark>")
INDENT = "   "

# A document is not ours to trust: its control characters could steer the terminal.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\n\t\r"
} | {ord("\r"): None}


def _harmless(text: str) -> str:
    return text.translate(_CONTROLS)


def _one_line(text: str) -> str:
    return _harmless(" ".join(text.split()))


def print_error(message: str) -> None:
    """Print `message` as one line, in red, to stderr."""
    remarks.print(Text(f"error: {_one_line(message)}", style="red"), soft_wrap=True)


def print_remark(message: str) -> None:
    """Print `message` as one line to stderr."""
    remarks.print(Text(_one_line(message)), soft_wrap=True)


def print_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """Print models as indented JSON, escaped where the encoding of stdout needs it."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    json.dump(to_jsonable_python(value), sys.stdout, ensure_ascii=not is_unicode, indent=2)
    sys.stdout.write("\n")


def print_hits(hits: Iterable[SearchResult], *, line_limit: int | None) -> None:
    """Print hits, best first, the words that they share with the query in bold.

    Args:
        hits: What a search with highlights returned.
        line_limit: Lines of text to show of each, those with most of such words; None shows all.
    """
    width = READING_WIDTH
    if output.is_terminal:
        width = min(width, output.width - len(INDENT))
    for number, hit in enumerate(hits, start=1):
        title = Text.assemble(f"{number}. ", (_one_line(hit.document_name), "bold"))
        for heading in hit.headings:
            title.append(f" > {_one_line(heading)}", style="cyan")
        output.print(title, soft_wrap=True)
        origin = f"{INDENT}score {hit.score:.2f}, document {hit.document_id}"
        output.print(Text(origin, style="dim"), soft_wrap=True)
        lines = list(_highlighted(hit).wrap(output, width))
        for line in _excerpt(lines, line_limit or len(lines)):
            line.rstrip()
            output.print(Text.assemble(INDENT if line else "", line), soft_wrap=True)
        output.print()


def _highlighted(hit: SearchResult) -> Text:
    parts = _MARK.split((hit.highlight or "").strip("\n"))
    styled = [(_harmless(unescape(part)), "bold" if n % 2 else "") for n, part in enumerate(parts)]
    return Text.assemble(*styled)


def _excerpt(lines: Sequence[Text], line_limit: int) -> list[Text]:
    """Return the `line_limit` neighbouring lines that have most words in bold, the first such."""
    found = [len({line.plain[s.start : s.end].casefold() for s in line.spans}) for line in lines]
    starts = range(max(1, len(lines) - line_limit + 1))
    start = max(starts, key=lambda first: (sum(found[first : first + line_limit]), -first))
    end = start + line_limit
    before = [Text("...")] if start > 0 else []
    after = [Text("...")] if end < len(lines) else []
    return [*before, *lines[start:end], *after]


def print_documents(documents: Iterable[Document]) -> None:
    """Print a table of documents, the name last and uncut."""
    form = "{:<36}  {:<15}  {:>6}  {:<16}  {}"
    heading = form.format("DOCUMENT ID", "TYPE", "CHUNKS", "UPDATED", "NAME")
    output.print(Text(heading, style="bold"), soft_wrap=True)
    for document in documents:
        line = form.format(
            document.document_id,
            document.document_type,
            document.chunk_count,
            _shown(document.updated_at),
            _one_line(document.document_name),
        )
        output.print(Text(line), soft_wrap=True)


def print_jobs(jobs: Iterable[EmbeddingJob]) -> None:
    """Print a table of jobs, the reason why one is still there last and uncut."""
    form = "{:<36}  {:<7}  {:>5}  {:<16}  {}"
    heading = form.format("DOCUMENT ID", "STATE", "TRIED", "SINCE", "OWNER: NAME, AND WHY")
    output.print(Text(heading, style="bold"), soft_wrap=True)
    for job in jobs:
        what = f"{_one_line(job.owner_id)}: {_one_line(job.document_name)}"
        why = "" if job.last_error is None else f", {_one_line(job.last_error)}"
        line = form.format(
            job.document_id, job.state, job.attempts, _shown(job.created_at), what + why
        )
        output.print(Text(line), soft_wrap=True)


def print_values(model: BaseModel, *, leave_out: str | None = None) -> None:
    """Print a model's fields, one a line."""
    fields = {name: value for name, value in model if name != leave_out}
    width = max(map(len, fields))
    for name, value in fields.items():
        label = f"{name.replace('_', ' '):<{width}}  "
        output.print(Text.assemble((label, "bold"), _shown(value)), soft_wrap=True)


def print_content(content: str) -> None:
    """Print a document's text: as it is into a pipe, without control characters to a terminal."""
    sys.stdout.write(_harmless(content) if output.is_terminal else content)
    if not content.endswith("\n"):
        sys.stdout.write("\n")


@contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """Show a line on a terminal while the block runs; give the function that changes it."""
    with remarks.status(Text(first)) as status:
        yield lambda line: status.update(Text(_one_line(line)))


@contextmanager
def progress_bar() -> Iterator[Callable[[MaintenanceProgress], None]]:
    """Show a bar on a terminal while the block runs; give the function that moves it."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=remarks,
        disable=not remarks.is_terminal,
    )
    with bar:
        task = bar.add_task("Starting", total=None)
        shown = ""

        def show(progress: MaintenanceProgress) -> None:
            nonlocal shown
            description = _one_line(f"{progress.step}: {progress.subject}")
            if description != shown:
                shown = description
                bar.reset(task, description=description)
            bar.update(task, completed=progress.done, total=progress.total)

        yield show


def confirmed(question: str) -> bool:
    """Return whether the user says yes; where nobody can answer it is no."""
    try:
        return remarks.input(f"{question} [y/N] ", markup=False).strip().lower() in {"y", "yes"}
    except EOFError:
        remarks.print()
        return False


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, BaseModel):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(part)}" for name, part in value)
    if isinstance(value, Mapping):
        return _one_line(json.dumps(to_jsonable_python(value), ensure_ascii=False))
    return _one_line(str(value))
