"""Commands on the tables: migrations, row level security, Citus, maintain, spaces."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from cyclopts import App

from llmemory.cli import spaces
from llmemory.cli.running import GivenSettings, with_memory
from llmemory.cli.terminal import (
    confirmed,
    output,
    print_error,
    print_values,
    progress_line,
    remarks,
)
from llmemory.settings import Settings
from llmemory.types import MaintenanceProgress

# SQLAlchemy and Alembic are imported by the commands: --help need not wait for them.

__all__ = ["app"]

app = App(name="db", help="Migrate the tables, look at their revision, and maintain them.")
app.command(spaces.spaces)
app.command(spaces.drop_space)


@app.command
def upgrade(
    revision: str = "head",
    /,
    *,
    all_schemas: bool = False,
    processes: int = 4,
    lock_timeout: float | None = None,
    settings: GivenSettings,
) -> int:
    """Make the tables, or bring them up to date. Any number of processes may do it at once.

    Args:
        revision: The revision to go to.
        all_schemas: Upgrade every schema of the database that holds tables of llmemory. One that
            fails does not stop the others; run it again for what is left.
        processes: How many schemas to upgrade at once, with --all-schemas.
        lock_timeout: Seconds to wait for a table that is in use; without it, for ever.
        settings: What the global options and the environment say.
    """
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import migrate

    if all_schemas:
        return _upgrade_all(settings, revision, processes, lock_timeout)
    run_in_transaction(
        settings, migrate.upgrade, settings.schema_name, revision, lock_timeout_s=lock_timeout
    )
    _print_revision(settings)
    return 0


def _upgrade_all(
    settings: Settings, revision: str, processes: int, lock_timeout_s: float | None
) -> int:
    from llmemory.schema.all_schemas import SchemaUpgrade, upgrade_schemas

    counts = Counter[str]()
    with progress_line("Looking for schemas") as show:

        def on_progress(result: SchemaUpgrade) -> None:
            counts[result.status] += 1
            show(f"{result.schema}: {result.status} ({_counted(counts)} so far)")
            if result.problem is not None:
                print_error(f'schema "{result.schema}": {result.problem}')

        upgrade_schemas(
            settings,
            revision=revision,
            processes=processes,
            lock_timeout_s=lock_timeout_s,
            on_progress=on_progress,
        )
    output.print(f"{counts.total()} schemas: {_counted(counts)}", soft_wrap=True)
    return 1 if counts["failed"] else 0


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("upgraded", "unchanged", "failed"))


@app.command
def downgrade(revision: str, /, *, yes: bool = False, settings: GivenSettings) -> int:
    """Take the tables back to an older revision. What later revisions made is dropped.

    Args:
        revision: The revision to go to; base drops every table with all documents.
        yes: Do not ask.
        settings: What the global options and the environment say.
    """
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import migrate

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
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import migrate

    run_in_transaction(settings, migrate.check, settings.schema_name)
    output.print(f'Schema "{settings.schema_name}" is what this version needs.', soft_wrap=True)


@app.command
def maintain(*, settings: GivenSettings) -> None:
    """Do the upkeep that is due: HNSW indexes of large owners, counts, planner statistics.

    Reading and writing go on meanwhile. Run it after bulk loads, and now and then.
    """
    with progress_line("Looking for what is due") as show:

        def on_progress(progress: MaintenanceProgress) -> None:
            done = f"{progress.done:.1f}" if progress.done % 1 else f"{progress.done:.0f}"
            show(f"{progress.step}: {progress.subject} ({done} of {progress.total} done)")

        result = with_memory(settings, lambda memory: memory.maintain(on_progress=on_progress))
    if result.is_busy:
        remarks.print("Another run is at work on this schema; nothing was done.")
        return
    print_values(result, leave_out="is_busy")


@app.command
def enable_rls(*, all_owners_role: list[str] | None = None, settings: GivenSettings) -> None:
    """Have PostgreSQL itself keep the owners' rows apart, by row level security.

    Memories then need LLMEMORY_ROW_LEVEL_SECURITY=true. Run it again after an upgrade that made
    tables, with the same roles.

    Args:
        all_owners_role: A role that sees all rows, for workers, db maintain and migrations.
        settings: What the global options and the environment say.
    """
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import row_level_security

    schema, roles = settings.schema_name, all_owners_role or []
    run_in_transaction(settings, row_level_security.enable, schema, all_owners_roles=roles)
    output.print(f'Schema "{schema}": row level security is on.', soft_wrap=True)


@app.command
def disable_rls(*, settings: GivenSettings) -> None:
    """Take row level security off the tables: every role sees the rows of all owners."""
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import row_level_security

    run_in_transaction(settings, row_level_security.disable, settings.schema_name)
    output.print(f'Schema "{settings.schema_name}": row level security is off.', soft_wrap=True)


@app.command
def distribute(*, by: Literal["owner", "schema"] = "owner", settings: GivenSettings) -> None:
    """Spread the tables over the nodes of a Citus cluster. What is spread already stays so.

    All rows are moved in one transaction, which others wait for.

    Args:
        by: owner has each owner's rows on one node, schema the whole schema.
        settings: What the global options and the environment say.
    """
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import distribution

    schema = settings.schema_name
    done = run_in_transaction(settings, distribution.distribute, schema, by=by)
    _print_tables(schema, done, f"distributed by {by}")


@app.command
def undistribute(*, settings: GivenSettings) -> None:
    """Bring tables that were spread over nodes back to the coordinator, as plain ones.

    All rows are moved in one transaction, which others wait for.
    """
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import distribution

    schema = settings.schema_name
    done = run_in_transaction(settings, distribution.undistribute, schema)
    _print_tables(schema, done, "plain tables again")


def _print_tables(schema: str, names: list[str], state: str) -> None:
    what = ", ".join(names) or "no table changed"
    output.print(f'Schema "{schema}", {state}: {what}', soft_wrap=True)


@app.command
def sql(revision: str = "head", /, *, settings: GivenSettings) -> None:
    """Print the SQL that makes the tables, without connecting: for review, or to run it yourself.

    Args:
        revision: The revision to go to, or FROM:TO for the steps between two.
        settings: What the global options and the environment say.
    """
    from llmemory.schema import migrate

    migrate.print_sql(settings.schema_name, revision)


def _print_revision(settings: Settings) -> None:
    from llmemory.database.engines import run_in_transaction
    from llmemory.schema import migrate

    found = run_in_transaction(settings, migrate.revision_of, settings.schema_name)
    state = {None: "no tables", migrate.HEAD: f"{found} (head)"}.get(found, found)
    output.print(f"{settings.schema_name}: {state}", soft_wrap=True)
