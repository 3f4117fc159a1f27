"""Flask: an extension that gives each application its memory.

::

    llmemory = LLMemory()


    def create_app() -> Flask:
        app = Flask(__name__)
        app.config.from_prefixed_env()
        llmemory.init_app(app)
        return app
"""

from __future__ import annotations

from llmemory.database.engines import run_in_transaction
from llmemory.embedding.base import Embedder
from llmemory.embedding.contexts import ChunkContext
from llmemory.errors import ConfigurationError, LLMemoryError
from llmemory.extras import importing
from llmemory.memory import Memory
from llmemory.schema import migrate
from llmemory.settings import Settings
from llmemory.web import ANSWERED, answer_to

with importing("flask"):
    import click
    from flask import Blueprint, Flask, Response, current_app, jsonify
    from flask.cli import AppGroup

__all__ = ["LLMemory", "install_error_handlers"]

NAME = "llmemory"


class LLMemory:
    """Gives every application that is initialised with it a blocking memory of its own.

    Settings come from ``app.config``: ``LLMEMORY_DATABASE_URL``, ``LLMEMORY_SCHEMA_NAME`` and so
    on, one key for each field of ``Settings``; what it leaves out, from the environment variables
    of the same names. Nothing is connected before the first call of the memory. The application
    also gets the commands ``flask llmemory upgrade`` and ``flask llmemory status``.

    Args:
        app: An application to initialise at once; others by ``init_app``.
        embedder: What makes the vectors. None takes the one that the settings name.
        chunk_context: A function that makes the context of each chunk that is embedded.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        embedder: Embedder | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> None:
        self._embedder = embedder
        self._chunk_context = chunk_context
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Make the memory of `app` from its configuration, and add the commands.

        Raises:
            ConfigurationError: The configuration is wrong, or the application has one already.
        """
        if NAME in app.extensions:
            raise ConfigurationError("This application has a memory already; call init_app once.")
        settings = Settings.from_env(**app.config.get_namespace("LLMEMORY_"))
        app.extensions[NAME] = Memory(
            settings=settings, embedder=self._embedder, chunk_context=self._chunk_context
        )
        app.cli.add_command(_commands)

    @property
    def memory(self) -> Memory:
        """The memory of the current application, the same object in every request.

        Raises:
            ConfigurationError: ``init_app`` was not called for it.
        """
        return _current_memory()


def _current_memory() -> Memory:
    memory: Memory | None = current_app.extensions.get(NAME)
    if memory is None:
        raise ConfigurationError("This application has no memory: call init_app(app) first.")
    return memory


def install_error_handlers(app: Flask | Blueprint) -> None:
    """Answer errors of a memory with their status and ``{"detail": "..."}``.

    ValidationError becomes 422, DocumentNotFoundError 404, ConflictError 409, StorageUnavailable
    and ProviderUnavailable 503 with ``Retry-After``. Other errors stay unhandled: a status 500,
    and a traceback in the application's log.

    Args:
        app: The application, or a blueprint whose views alone shall answer so.
    """
    for kind in ANSWERED:
        app.register_error_handler(kind, _answer)


def _answer(error: LLMemoryError) -> tuple[Response, int, dict[str, str]]:
    answer = answer_to(error)
    return jsonify(answer.body), answer.status, answer.headers


_commands = AppGroup(NAME, help="The tables of the document memory.")


@_commands.command()
def upgrade() -> None:
    """Make the tables, or bring them up to date."""
    settings = _current_memory().settings
    try:
        run_in_transaction(settings, migrate.upgrade, settings.schema_name)
    except LLMemoryError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f'Schema "{settings.schema_name}" is at revision {migrate.HEAD}.')


@_commands.command()
def status() -> None:
    """Print whether database and tables fit, as JSON; exit code 1 if not."""
    health = _current_memory().health()
    click.echo(health.model_dump_json(indent=2))
    if not health.healthy:
        raise click.exceptions.Exit(1)
