"""The application ``llmemory.django``: no models, a system check and a command."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, register

from llmemory.django.configuration import arguments_from, configured_values
from llmemory.errors import ConfigurationError

__all__ = ["LLMemoryConfig"]


class LLMemoryConfig(AppConfig):
    """Its tables are no models: they are migrated by ``manage.py llmemory upgrade``."""

    name = "llmemory.django"
    label = "llmemory"
    verbose_name = "Document memory"

    def ready(self) -> None:
        """Have ``manage.py check`` look at the setting ``LLMEMORY``."""
        register(_check_settings)


def _check_settings(**options: Any) -> list[CheckMessage]:
    try:
        arguments_from(configured_values())
    except ConfigurationError as error:
        hint = "The page docs/django.md lists what the setting LLMEMORY may hold."
        return [Error(str(error), hint=hint, id="llmemory.E001")]
    return []
