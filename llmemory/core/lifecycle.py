"""What every use case stands on: settings, connections, schema and space."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from llmemory import embedding
from llmemory.database.engines import Database
from llmemory.database.replicas import replica_of
from llmemory.documents.assembly import options_for
from llmemory.documents.store import Store
from llmemory.embedding.base import Embedder, checked_embedder, find_dimensions
from llmemory.embedding.contexts import ChunkContext, Contexts
from llmemory.embedding.query_cache import QueryCache
from llmemory.errors import ConfigurationError, SchemaError, SchemaTooNew
from llmemory.models import tables_for
from llmemory.schema import migrate
from llmemory.schema.row_level_security import check_sees_all
from llmemory.search.vector_indexes import VectorIndexes
from llmemory.settings import Settings, checked_schema
from llmemory.spaces import Model, identity_of, open_space

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class Lifecycle:
    """Opens and closes a memory."""

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        openai_api_key: str | None = None,
        engine: AsyncEngine | None = None,
        replica_engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> None:
        if settings is None:
            settings = Settings.from_env()
        elif not isinstance(settings, Settings):
            raise ConfigurationError(
                f"settings must be a Settings object, not {type(settings).__name__}."
            )
        if connection_string is not None:
            if not isinstance(connection_string, str) or not connection_string.strip():
                raise ConfigurationError(
                    "connection_string must be text such as postgresql://host/database; leave it "
                    "out, or pass embedded://, for the embedded server."
                )
            if engine is not None:
                raise ConfigurationError("Give a connection string or an engine, not both.")
            settings = settings.model_copy(update={"database_url": SecretStr(connection_string)})
        if openai_api_key is not None:
            if embedder is not None:
                raise ConfigurationError("Give an OpenAI key or an embedder, not both.")
            key = SecretStr(openai_api_key)
            settings = settings.model_copy(update={"openai_api_key": key, "embedder": "openai"})
        self.settings = settings
        self.schema = checked_schema(settings.schema_name if schema is None else schema)
        self._embedder = (
            embedding.from_settings(settings) if embedder is None else checked_embedder(embedder)
        )
        self._own_embedder = self._embedder if embedder is None else None
        self._contexts = Contexts(chunk_context, settings)
        self._queries = QueryCache(settings.query_cache_size)
        self._database = Database(settings, engine=engine, schema=self.schema)
        self._replica = replica_of(settings, replica_engine, schema=self.schema)
        self.execution_options = options_for(self.schema)
        self._tables = tables_for(self.schema)
        self._store = Store(
            self._tables,
            notify=settings.job_notify,
            row_level_security=settings.row_level_security,
        )
        self._model: Model | None = None
        self._indexes = VectorIndexes(self._tables, settings.hnsw_refresh_s)
        self._opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    @classmethod
    def from_engine(
        cls,
        engine: AsyncEngine,
        *,
        replica_engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> Self:
        """Return a memory on an engine of yours; several may share it, each with its schema.

        The engine stays yours: ``close`` does not dispose of it.
        """
        return cls(
            engine=engine,
            replica_engine=replica_engine,
            schema=schema,
            embedder=embedder,
            settings=settings,
            chunk_context=chunk_context,
        )

    @property
    def embedder(self) -> Embedder:
        """What makes the vectors; ``reembed`` puts another in its place."""
        return self._embedder

    async def initialize(self) -> None:
        """Connect, bring the schema up to date and check it. Calling it again does nothing.

        Any number of processes may call it at once: one migrates, the others wait. With
        ``Settings.migrate=False`` it only checks.

        Raises:
            SchemaError: The schema is missing, older or newer than the library, or pgvector is
                absent; the message holds the command to run.
            EmbedderMismatchError: The stored vectors come from another model.
            ConfigurationError: The login was refused or the database does not exist.
            StorageUnavailable: The server cannot be reached.
            ClosedError: ``close`` was called.
        """
        await self._open()

    async def close(self) -> None:
        """Close the connections that this memory opened. Later calls raise ClosedError."""
        await self._database.close()
        if self._replica is not None:
            await self._replica.close()
        close_embedder = getattr(self._own_embedder, "aclose", None)
        if close_embedder is not None:
            await close_embedder()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _open(self) -> Model:
        """Return the embedder and its space, which belong together; connect and migrate first."""
        self._database.check_open()
        if self._model is not None and not self._database.lacks_tables:
            return self._model
        async with self._opening_alone():
            if self._model is None or self._database.lacks_tables:
                await self._migrate()
                embedder = self._embedder
                await find_dimensions(embedder)
                async with self._database.connect() as connection:
                    space = await open_space(connection, self._tables, identity_of(embedder))
                    await self._indexes.refresh(connection)
                self._model = Model(embedder, space)
                self._database.lacks_tables = False
            return self._model

    def _opening_alone(self) -> asyncio.Lock:
        return self._opening.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _migrate(self) -> None:
        async with self._database.connect() as connection:
            try:
                await connection.run_sync(migrate.check, self.schema)
            except SchemaTooNew:
                raise
            except SchemaError:
                if not self.settings.migrate:
                    raise
            else:
                return
        async with migrate.ready(), self._database.transaction() as connection:
            await connection.run_sync(migrate.upgrade, self.schema)

    async def _check_sees(self, owner_id: str | None) -> None:
        """Refuse a call about all owners where it would find nothing, and say nothing of it."""
        if owner_id is None and self.settings.row_level_security:
            async with self._database.connect() as connection:
                await connection.run_sync(check_sees_all, self.schema)
