"""Reading ``LLMEMORY`` of Django's settings, and a connection string out of ``DATABASES``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist
from django.utils.module_loading import import_string
from psycopg.pq import Conninfo

from llmemory.embedding.base import Embedder
from llmemory.errors import ConfigurationError
from llmemory.settings import Settings

__all__ = ["arguments_from", "configured_values"]


def configured_values() -> dict[str, Any]:
    """Return what ``LLMEMORY`` says as it is now: fields of ``Settings`` with their values.

    The key ``DATABASE`` has become ``database_url``, with the database that Django's connection
    uses: while Django's tests run, that is the test database.

    Raises:
        ConfigurationError: ``LLMEMORY`` is no dict, or no connection string can be made.
    """
    given = getattr(settings, "LLMEMORY", {})
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError(
            'The setting LLMEMORY must be a dict, such as {"DATABASE": "default"}.'
        )
    values = {name.lower(): value for name, value in given.items()}
    if "database" in values:
        if "database_url" in values:
            raise ConfigurationError("LLMEMORY has DATABASE and DATABASE_URL; keep one of them.")
        values["database_url"] = _url_of(values.pop("database"))
    return values


def arguments_from(values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a memory that ``configured_values`` stand for.

    Raises:
        ConfigurationError: A value is out of range, a name is unknown, or the class of an
            embedder or the function that makes contexts cannot be imported.
    """
    others = dict(values)
    found: dict[str, Any] = {}
    path = values.get("embedder")
    if isinstance(path, str) and "." in path:
        del others["embedder"]
        found["embedder"] = _embedder_at(path)
    if "chunk_context" in others:
        found["chunk_context"] = _imported("chunk_context", others.pop("chunk_context"))
    return {"settings": Settings.from_env(**others), **found}


def _imported(name: str, path: object) -> Any:
    if not isinstance(path, str):
        raise ConfigurationError(
            f'LLMEMORY["{name.upper()}"] must be a dotted path, not {type(path).__name__}.'
        )
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigurationError(
            f'LLMEMORY["{name.upper()}"]: {path} cannot be imported: {error}.'
        ) from error
    if not callable(found):
        raise ConfigurationError(f'LLMEMORY["{name.upper()}"]: {path} is no class or function.')
    return found


def _embedder_at(path: str) -> Embedder:
    make = _imported("embedder", path)
    try:
        embedder: Embedder = make()
    except TypeError as error:
        raise ConfigurationError(
            f'LLMEMORY["EMBEDDER"]: {path} must be a class that is made without arguments.'
        ) from error
    return embedder


def _url_of(alias: object) -> str:
    if not isinstance(alias, str):
        raise ConfigurationError(
            f'LLMEMORY["DATABASE"] must be an alias in DATABASES, not {type(alias).__name__}.'
        )
    try:
        connection = connections[alias]
        parameters = connection.get_connection_params()
    except ConnectionDoesNotExist as error:
        raise ConfigurationError(
            f'LLMEMORY["DATABASE"] is {alias!r}, which is not in DATABASES.'
        ) from error
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"DATABASES[{alias!r}]: {error}") from error
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"DATABASES[{alias!r}] is {connection.display_name}; llmemory needs PostgreSQL. Name "
            'another alias, or give LLMEMORY["DATABASE_URL"].'
        )
    # What is left out are objects, such as cursor classes, for Django's own use of psycopg.
    kept = {name: value for name, value in parameters.items() if name in _libpq_parameters()}
    # Django's driver, which takes every parameter as Django's own connections do.
    return f"postgresql+psycopg://?{urlencode(kept, quote_via=quote)}"


@cache
def _libpq_parameters() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
