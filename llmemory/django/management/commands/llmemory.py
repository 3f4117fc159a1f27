"""``manage.py llmemory upgrade`` and ``manage.py llmemory status``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from llmemory.database.engines import run_in_transaction
from llmemory.django import get_memory
from llmemory.errors import LLMemoryError
from llmemory.schema import migrate

__all__ = ["Command"]


class Command(BaseCommand):
    """The tables of the document memory."""

    help = "Make, migrate and look at the tables of the document memory."

    def add_arguments(self, parser: CommandParser) -> None:
        """Name the two things to do."""
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("upgrade", help="Make the tables, or bring them up to date.")
        actions.add_parser(
            "status", help="Print whether database and tables fit, as JSON; exit code 1 if not."
        )

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        """Do what the command line says."""
        try:
            self._upgrade() if action == "upgrade" else self._print_status()
        except LLMemoryError as error:
            raise CommandError(str(error)) from error

    def _upgrade(self) -> None:
        settings = get_memory().settings
        run_in_transaction(settings, migrate.upgrade, settings.schema_name)
        self.stdout.write(f'Schema "{settings.schema_name}" is at revision {migrate.HEAD}.')

    def _print_status(self) -> None:
        health = get_memory().health()
        self.stdout.write(health.model_dump_json(indent=2))
        if health.problem is not None:
            raise CommandError(health.problem)
