"""Commands on the tables: upgrade, downgrade, current, check, sql."""

from __future__ import annotations

from cyclopts import App

from llmemory.cli.running import GivenSettings
from llmemory.cli.terminal import confirmed, output, remarks
from llmemory.settings import Settings

# SQLAlchemy and Alembic are imported by the commands: --help need not wait for them.

__all__ = ["app"]

app = App(name="db", help="Migrate the tables, and look at their revision.")


@app.command
def upgrade(revision: str = "head", /, *, settings: GivenSettings) -> None:
    """Make the tables, or bring them up to date. Any number of processes may do it at once.

    Args:
        revision: The revision to go to.
        settings: What the global options and the environment say.
    """
    from llmemory import migrate
    from llmemory.database import run_in_transaction

    run_in_transaction(settings, migrate.upgrade, settings.schema_name, revision)
    _print_revision(settings)


@app.command
def downgrade(revision: str, /, *, yes: bool = False, settings: GivenSettings) -> int:
    """Take the tables back to an older revision. What later revisions made is dropped.

    Args:
        revision: The revision to go to; base drops every table with all documents.
        yes: Do not ask.
        settings: What the global options and the environment say.
    """
    from llmemory import migrate
    from llmemory.database import run_in_transaction

    question = (
        f'Drop all documents in schema "{settings.schema_name}"?'
        if revision == "base"
        else f'Take schema "{settings.schema_name}" back to {revision}, and drop what later '
        "revisions made with its data?"
    )
    if not yes and not confirmed(question):
        remarks.print("Nothing was changed; --yes goes ahead without asking.")
        return 1
    run_in_transaction(settings, migrate.downgrade, settings.schema_name, revision)
    _print_revision(settings)
    return 0


@app.command
def current(*, settings: GivenSettings) -> None:
    """Print the revision that the tables are at."""
    _print_revision(settings)


@app.command
def check(*, settings: GivenSettings) -> None:
    """Check that server, pgvector and tables are what this version needs; exit code 1 if not."""
    from llmemory import migrate
    from llmemory.database import run_in_transaction

    run_in_transaction(settings, migrate.check, settings.schema_name)
    output.print(f'Schema "{settings.schema_name}" is what this version needs.', soft_wrap=True)


@app.command
def sql(revision: str = "head", /, *, settings: GivenSettings) -> None:
    """Print the SQL that makes the tables, without connecting: for review, or to run it yourself.

    Args:
        revision: The revision to go to, or FROM:TO for the steps between two.
        settings: What the global options and the environment say.
    """
    from llmemory import migrate

    migrate.print_sql(settings.schema_name, revision)


def _print_revision(settings: Settings) -> None:
    from llmemory import migrate
    from llmemory.database import run_in_transaction

    found = run_in_transaction(settings, migrate.revision_of, settings.schema_name)
    state = {None: "no tables", migrate.HEAD: f"{found} (head)"}.get(found, found)
    output.print(f"{settings.schema_name}: {state}", soft_wrap=True)
