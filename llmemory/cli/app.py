"""The commands put together: global options, exit codes and errors as one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

import llmemory
from llmemory.cli.adding import add
from llmemory.cli.demo import demo
from llmemory.cli.documents import delete, health, list_documents, search, show, stats
from llmemory.cli.queue import jobs, worker
from llmemory.cli.schema import app as migrations
from llmemory.cli.spaces import reembed
from llmemory.cli.terminal import print_error
from llmemory.errors import LLMemoryError, ValidationError
from llmemory.settings import Settings

__all__ = ["run"]

FAILED = 1
MISUSED = 2
INTERRUPTED = 130

app = App(
    name="llmemory",
    help="A document memory in PostgreSQL: add files, search them by meaning and by words.",
    help_epilogue=(
        "Every LLMEMORY_ environment variable of docs/configuration.md counts here too. Without a "
        "database URL the embedded PostgreSQL is used, which keeps your documents in your data "
        "folder."
    ),
    version=llmemory.__version__,
    # No --no-json and the like: an option that is off is left out.
    default_parameter=Parameter(negative=()),
)
app.command(demo, sort_key=1)
app.command(add, sort_key=2)
app.command(search, sort_key=3)
app.command(list_documents, name="list", sort_key=4)
app.command(show, sort_key=5)
app.command(delete, sort_key=6)
app.command(stats, sort_key=7)
app.command(health, sort_key=8)
app.command(worker, sort_key=9)
app.command(reembed, sort_key=10)
app.command(jobs)
app.command(migrations)
app.meta.group_parameters = Group("Global options")


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    database_url: str | None = None,
    schema: str | None = None,
    chunk_context: str | None = None,
) -> int | None:
    """Run the command that `tokens` spell, with the settings that the global options change.

    Args:
        tokens: The command line without the global options.
        database_url: Where the documents live. Other users of the machine can see command
            lines: give a password in LLMEMORY_DATABASE_URL instead.
        schema: PostgreSQL schema of the tables; LLMEMORY_SCHEMA_NAME, else llmemory.
        chunk_context: For commands that embed: the function that makes what the model sees before
            a chunk, as package.module:name; LLMEMORY_CHUNK_CONTEXT.
    """
    command, bound, ignored = app.parse_args(tokens, exit_on_error=False, print_error=False)
    if "settings" in ignored:
        given = {
            "database_url": database_url,
            "schema_name": schema,
            "chunk_context": chunk_context,
        }
        settings = Settings.from_env(
            **{name: value for name, value in given.items() if value is not None}
        )
        if settings.chunk_context is not None:
            # Modules of the folder that one is in count, but no other instead of an installed one.
            sys.path.append(str(Path.cwd()))
        bound.arguments["settings"] = settings
    code: int | None = command(*bound.args, **bound.kwargs)
    return code


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0, 1 failed, 2 misused, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A document may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    try:
        code: int | None = app.meta(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        words = " ".join(("llmemory", *(error.command_chain or ())))
        print_error(f"{error} See {words} --help.")
        return MISUSED
    except ValidationError as error:
        print_error(str(error))
        return MISUSED
    except LLMemoryError as error:
        print_error(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has seen enough. What is still buffered must go somewhere, or
        # the interpreter complains about it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    # --help and --version return none.
    return code or 0
