"""The command that shows the library at work on its own documentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from llmemory.cli.adding import Addition, add_sources
from llmemory.cli.folders import Source
from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import output, print_hits, remarks
from llmemory.errors import ConfigurationError

if TYPE_CHECKING:
    from llmemory.core import AsyncMemory
    from llmemory.types import SearchResult

__all__ = ["demo"]

OWNER = "demo"
QUESTIONS = (
    "How do I search my own files?",
    "What happens when I add the same document again?",
    "Which environment variable names the database?",
)
HITS = 2
EXCERPT_LINES = 8

CLOSING = f"""\
Now add your own text and Markdown files, and search them:

  llmemory add PATH
  llmemory search "your question"

Search the documents of this demo, which belong to the owner "{OWNER}":

  llmemory search --owner {OWNER} "your question"
"""


def demo(*, settings: GivenSettings) -> int:
    """Add this project's own documentation and run three searches on it.

    Starts the embedded PostgreSQL unless a database URL is set, and makes the tables. The
    documents stay, for the owner "demo"; running it again finds them unchanged.
    """
    sources = documentation()
    addition = Addition()

    async def run(memory: AsyncMemory) -> list[list[SearchResult]]:
        with remarks.status("Opening the database ..."):
            await memory.initialize()
        await add_sources(memory, sources, addition, owner=OWNER)
        return [
            await memory.search(OWNER, question, limit=HITS, highlight=True)
            for question in QUESTIONS
        ]

    answers = with_memory(settings, run)
    for result in addition.results:
        output.print(f"{result.status:<9}  {result.document_name}", soft_wrap=True)
    output.print(f"{addition.summary()}\n")
    for question, hits in zip(QUESTIONS, answers, strict=True):
        command = f'llmemory search --owner {OWNER} "{question}"'
        output.print(Text(f"$ {command}\n", style="bold green"), soft_wrap=True)
        print_hits(hits, line_limit=EXCERPT_LINES)
    output.print(CLOSING, end="")
    return 1 if addition.failed else 0


def documentation() -> list[Source]:
    """Return README.md and docs/*.md: the wheel's, or the clone's if run from there.

    Raises:
        ConfigurationError: They are in neither place.
    """
    package = Path(__file__).parent.parent
    packaged = package / "_demo"
    folder = packaged if packaged.is_dir() else package.parent
    paths = [folder / "README.md", *sorted((folder / "docs").rglob("*.md"))]
    # Relative, so that the demo of another installation replaces these instead of adding its own.
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    if not names:
        raise ConfigurationError(
            f"The documentation is neither in {packaged} nor in {package.parent}; install "
            "llmemory from its wheel or run it from a clone."
        )
    return [Source(folder / name, name, external_id=f"llmemory/{name}") for name in names]
