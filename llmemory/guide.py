"""``AwordMemory``: ``AsyncMemory`` with ``pool`` as the word for what several memories share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from sqlalchemy.ext.asyncio import AsyncEngine

from llmemory.core import AsyncMemory
from llmemory.database import pools
from llmemory.database.engines import Database
from llmemory.embedding.base import Embedder
from llmemory.embedding.contexts import ChunkContext
from llmemory.errors import ConfigurationError
from llmemory.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    AnyPool: TypeAlias = "SharedPool | AsyncEngine | asyncpg.Pool"

__all__ = ["AwordMemory", "SharedPool"]

# What a manager of pgdbm says that was given no schema.
_DEFAULT_SCHEMA_OF_MANAGERS = "public"


@dataclass(frozen=True, slots=True)
class SharedPool:
    """The connections of a memory and what makes its vectors, for others to share.

    It is ``AwordMemory.pool``, and holds from before the first connection until the memory that
    it comes from is closed, in every event loop.
    """

    database: Database
    embedder: Embedder
    settings: Settings


class AwordMemory(AsyncMemory):
    """``AsyncMemory`` that can lend its connections to others, one schema each.

    Args:
        connection_string: As for ``AsyncMemory``.
        openai_api_key: As for ``AsyncMemory``.
        pool: Connections to use instead: the ``pool`` of another AwordMemory, an AsyncEngine or
            a pool of asyncpg, such as pgdbm's. ``close`` leaves them open.
        engine: As for ``AsyncMemory``.
        replica_engine: As for ``AsyncMemory``.
        schema: As for ``AsyncMemory``.
        embedder: As for ``AsyncMemory``. With the pool of another memory, None takes that one's.
        settings: As for ``AsyncMemory``. With the pool of another memory, None takes that one's.
        chunk_context: As for ``AsyncMemory``.

    Raises:
        ConfigurationError: The arguments contradict each other, or no embedder is installed.

    Example:
        >>> async with AwordMemory("postgresql://localhost/app") as memory:
        ...     tenant = AwordMemory(pool=memory.pool, schema="tenant_7")
        ...     await tenant.add_document("acme", "Leave policy", "Staff have 25 days of leave.")
    """

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        openai_api_key: str | None = None,
        pool: AnyPool | None = None,
        engine: AsyncEngine | None = None,
        replica_engine: AsyncEngine | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> None:
        if pool is not None and (connection_string is not None or engine is not None):
            raise ConfigurationError("Give a connection string, an engine or a pool: one of them.")
        shared = pool if isinstance(pool, SharedPool) else None
        if shared is not None:
            settings = shared.settings if settings is None else settings
            if embedder is None and openai_api_key is None:
                embedder = shared.embedder
        elif pool is not None:
            settings = Settings.from_env() if settings is None else settings
            engine = _engine_of(pool, settings)
        super().__init__(
            connection_string,
            openai_api_key=openai_api_key,
            engine=engine,
            replica_engine=replica_engine,
            schema=schema,
            embedder=embedder,
            settings=settings,
            chunk_context=chunk_context,
        )
        if shared is not None:
            self._database = Database(self.settings, lender=shared.database, schema=self.schema)

    @classmethod
    def from_db_manager(
        cls,
        manager: Any,
        *,
        openai_api_key: str | None = None,
        schema: str | None = None,
        embedder: Embedder | None = None,
        settings: Settings | None = None,
        chunk_context: ChunkContext | None = None,
    ) -> Self:
        """Return a memory on the pool of an ``AsyncDatabaseManager`` of pgdbm.

        Its connections are borrowed from that pool and go back to it as they came. A manager that
        has yet to connect may be given as well; it must be connected before the memory is used.

        Args:
            manager: The manager.
            openai_api_key: As for ``AsyncMemory``.
            schema: None takes the manager's, or the settings' where that has none or "public".
            embedder: As for ``AsyncMemory``.
            settings: As for ``AsyncMemory``.
            chunk_context: As for ``AsyncMemory``.
        """
        if not hasattr(manager, "_pool"):
            raise ConfigurationError(
                f"manager must be an AsyncDatabaseManager of pgdbm, not {type(manager).__name__}."
            )
        if schema is None and manager.schema != _DEFAULT_SCHEMA_OF_MANAGERS:
            schema = manager.schema
        settings = Settings.from_env() if settings is None else settings

        def find_pool() -> Any:
            if manager._pool is None:
                raise ConfigurationError(
                    "The database manager is not connected. Call `await manager.connect()` "
                    "before the memory is used."
                )
            return manager._pool

        return cls(
            engine=pools.engine_on_pool(find_pool, timeout_s=settings.pool_timeout_s),
            openai_api_key=openai_api_key,
            schema=schema,
            embedder=embedder,
            settings=settings,
            chunk_context=chunk_context,
        )

    @property
    def pool(self) -> SharedPool:
        """What to pass as ``pool=`` to a memory that shall share these connections."""
        return SharedPool(self._database, self.embedder, self.settings)


def _engine_of(pool: object, settings: Settings) -> AsyncEngine:
    if isinstance(pool, AsyncEngine):
        return pool
    if pools.is_pool(pool):
        return pools.engine_on_pool(lambda: pool, timeout_s=settings.pool_timeout_s)
    raise ConfigurationError(
        "pool must be the pool of an AwordMemory, an AsyncEngine or a pool of asyncpg, "
        f"not {type(pool).__name__}."
    )
