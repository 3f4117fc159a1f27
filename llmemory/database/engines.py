"""Engines and transaction scopes: one engine per event loop, closed only if it was opened here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from sqlalchemy import Connection
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import NullPool, Pool, QueuePool

from llmemory.database.driver_errors import translated_errors
from llmemory.database.drivers import create_engine
from llmemory.database.leaving import GivenBack, left_in_peace
from llmemory.database.local_settings import OWNER_SETTING, local_settings, owner_of, set_owner
from llmemory.errors import ClosedError, ConfigurationError, SchemaMissing
from llmemory.settings import Settings

__all__ = ["Database", "Session", "run_in_transaction"]

T = TypeVar("T")
Arguments = ParamSpec("Arguments")

Session: TypeAlias = AsyncSession | AsyncConnection
"""What callers pass as ``session`` to have a call join their transaction."""


class Database:
    """Where the connections come from.

    An engine made here belongs to the event loop it was first used in: a further loop gets one of
    its own, and each is disposed of with its loop. An engine of the caller's is used as it is, and
    so are those of another database that lends them.

    Args:
        settings: Where the server is, and how many connections to hold.
        engine: The caller's engine.
        lender: A database whose engines to use, for as long as it is open.
        schema: Where the tables should be that a statement may find missing.

    Attributes:
        lacks_tables: Whether a statement found one missing. Whoever looks anew sets it back.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: AsyncEngine | None = None,
        lender: Database | None = None,
        schema: str | None = None,
    ) -> None:
        if engine is not None and not isinstance(engine, AsyncEngine):
            raise ConfigurationError(
                "engine must be an AsyncEngine for PostgreSQL, as create_async_engine of "
                f"sqlalchemy.ext.asyncio makes it, not {type(engine).__name__}."
            )
        if engine is not None and engine.dialect.name != "postgresql":
            raise ConfigurationError(
                f"The engine speaks {engine.dialect.name}; llmemory needs PostgreSQL."
            )
        self.lacks_tables = False
        self._settings = settings
        self._schema = schema
        self._lender = lender
        self._given = engine
        self._own: dict[asyncio.AbstractEventLoop, tuple[AsyncEngine, AsyncGenerator[None]]] = {}
        self._release_server: Callable[[], None] | None = None
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called here or where the engines come from."""
        return self._closed or (self._lender is not None and self._lender.is_closed)

    @property
    def is_given(self) -> bool:
        """Whether the engine is a caller's, who may listen to its events."""
        owner = self if self._lender is None else self._lender
        return owner._given is not None

    @property
    def given_engine(self) -> AsyncEngine | None:
        """The engine that the caller brought, if any."""
        return self._given

    @property
    def has_sessions(self) -> bool:
        """Whether a connection is one session of the server's, not one of a pooler's at a time."""
        owner = self if self._lender is None else self._lender
        return not owner._settings.transaction_pooler

    def check_open(self) -> None:
        """Raise ClosedError after ``close``."""
        if self._closed:
            raise ClosedError("This memory is closed; make a new one.")
        if self._lender is not None and self._lender.is_closed:
            raise ClosedError(
                "The memory whose pool this one shares is closed; close that one last."
            )

    async def engine(self) -> AsyncEngine:
        """Return the engine of the running event loop.

        Raises:
            ClosedError: ``close`` was called.
            ConfigurationError: The caller's engine is used from a second event loop, or no server
                is named and the embedded one is not installed.
        """
        self.check_open()
        if self._lender is not None:
            return await self._lender.engine()
        loop = asyncio.get_running_loop()
        if self._given is not None:
            return self._checked_given(self._given, loop)
        if (found := self._own.get(loop)) is not None:
            return found[0]
        self._forget_closed_loops()
        url = await self._server_url()
        if (found := self._own.get(loop)) is not None:
            return found[0]
        engine = create_engine(url, self._settings)
        disposer = _dispose_with_loop(engine)
        _disposers.add(disposer)
        self._own[loop] = (engine, disposer)
        await anext(disposer)
        return engine

    def _checked_given(self, engine: AsyncEngine, loop: asyncio.AbstractEventLoop) -> AsyncEngine:
        first = _first_loops.setdefault(engine.pool, loop)
        if first is not loop and not isinstance(engine.pool, NullPool):
            raise ConfigurationError(
                "This engine was used in another event loop, where its connections live. Give "
                "each loop an engine of its own, make the engine with poolclass=NullPool, or pass "
                "a connection string and let the memory make its engines."
            )
        return engine

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in self._own if loop.is_closed()]:
            engine, disposer = self._own.pop(loop)
            _disposers.discard(disposer)
            # Its sockets cannot be closed without their loop; garbage collection does it.
            engine.sync_engine.dispose(close=False)

    async def _server_url(self) -> str:
        secret = self._settings.database_url
        url = secret.get_secret_value().strip() if secret is not None else ""
        if url and not url.startswith("embedded:"):
            return url
        from llmemory import embedded

        folder = _embedded_folder(url)
        # Starting waits for processes and file locks, which must not stop the event loop.
        server = await anyio.to_thread.run_sync(embedded.start, folder)
        if self._release_server is None:
            self._release_server = server.release
        else:
            server.release()
        return server.url

    @asynccontextmanager
    async def connect(
        self, session: Session | None = None, *, owner_id: str | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """Give a connection for reading; each statement is a transaction of its own.

        Args:
            session: Read in this transaction instead, seeing what it has not committed.
            owner_id: Whose rows are read, for row level security.
        """
        if session is not None:
            with self._schema_named(joined=True):
                connection = await self._joined(session)
                async with self.reading(connection, owner_id):
                    yield connection
            return
        engine = await self.engine()
        with self._schema_named(), translated_errors():
            # Autocommit saves the two round trips of BEGIN and COMMIT; our own engines begin in it.
            if self.is_given:
                engine = _isolated(engine, "AUTOCOMMIT")
            taken = self._taken_at_once(engine) or self._arriving(engine.connect())
            async with taken as connection:
                try:
                    async with self.reading(connection, owner_id):
                        yield connection
                finally:
                    await self._drop_if_closed(connection)

    def reading(
        self, connection: AsyncConnection, owner_id: str | None
    ) -> AbstractAsyncContextManager[None]:
        """Let `connection` read an owner's rows within the block, where policies ask whose."""
        return local_settings(connection, self.owner_settings(owner_id))

    def owner_settings(self, owner_id: str | None) -> dict[str, str | int]:
        """Return what PostgreSQL must be told before it shows an owner's rows."""
        if owner_id is None or not self._settings.row_level_security:
            return {}
        return {OWNER_SETTING: owner_id}

    def _taken_at_once(self, engine: AsyncEngine) -> GivenBack | None:
        """Return a connection that lies ready in a pool of ours, or None if it takes waiting.

        No cancellation can meet it half-way, so that it needs none of the tasks that guard against
        that, which take most of the time.
        """
        settings = (self if self._lender is None else self._lender)._settings
        pool = engine.pool
        if (
            self.is_given
            # psycopg's connections wait even to set AUTOCOMMIT, and so do full pools.
            or engine.dialect.driver != "asyncpg"
            or not isinstance(pool, QueuePool)
            or not pool.checkedin()
            or pool.overflow() >= settings.pool_overflow
        ):
            return None
        # Nothing can wait outside of a greenlet: where the server has ended it, this fails.
        with suppress(MissingGreenlet):
            return GivenBack(AsyncConnection(engine, engine.sync_engine.connect()), pool)
        return None

    @asynccontextmanager
    async def transaction(
        self, session: Session | None = None, *, owner_id: str | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction, committed at the end and rolled back on an error.

        Args:
            session: Join this transaction instead and leave committing to its owner.
            owner_id: Whose rows are written, for row level security; ``writing`` changes it.
        """
        async with self._begun(session) as connection:
            if not self._settings.row_level_security:
                yield connection
                return
            with translated_errors():
                former = await owner_of(connection)
            if owner_id is not None:
                await set_owner(connection, owner_id)
            yield connection
            # Once its savepoint is released, the caller's transaction would keep the owner.
            if session is not None:
                await set_owner(connection, former)

    async def writing(self, connection: AsyncConnection, owner_id: str) -> None:
        """Let the transaction of ``transaction`` write an owner's rows from now on."""
        if self._settings.row_level_security:
            await set_owner(connection, owner_id)

    @asynccontextmanager
    async def _begun(self, session: Session | None) -> AsyncIterator[AsyncConnection]:
        if session is not None:
            self._check_session(session)
            # The caller may catch an error of ours and commit: what we began must be gone then.
            with self._schema_named(joined=True), translated_errors():
                async with session.begin_nested():
                    yield await self._joined(session)
            return
        engine = await self.engine()
        with self._schema_named(), translated_errors():
            # Said expressly: a caller's engine may commit each statement by itself.
            engine = _isolated(engine, "READ COMMITTED")
            async with self._arriving(engine.connect()) as connection:
                try:
                    async with left_in_peace(connection.begin()):
                        yield connection
                finally:
                    await self._drop_if_closed(connection)

    @contextmanager
    def _schema_named(self, *, joined: bool = False) -> Iterator[None]:
        try:
            yield
        except SchemaMissing as error:
            # In a caller's transaction they may be missing for the caller alone.
            self.lacks_tables = self.lacks_tables or not joined
            if error.schema or self._schema is None:
                raise
            raise SchemaMissing(
                f'A table or function of schema "{self._schema}" is missing. Run '
                f"`llmemory db upgrade --schema {quote(self._schema)}`.",
                schema=self._schema,
            ) from error.__cause__

    def _arriving(
        self, connection: AsyncConnection
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        # Given back while its engine is disposed of, one would outlive both.
        return left_in_peace(connection, self._drop)

    async def _drop_if_closed(self, connection: AsyncConnection) -> None:
        # Closing an engine closes what lies in its pool; what is out would go back to nobody.
        owner = self if self._lender is None else self._lender
        if owner.is_closed:
            await self._drop(connection)

    async def _drop(self, connection: AsyncConnection) -> None:
        if not self.is_given:
            with anyio.CancelScope(shield=True), suppress(Exception):
                await connection.invalidate()

    async def _joined(self, session: Session) -> AsyncConnection:
        self._check_session(session)
        if isinstance(session, AsyncConnection):
            return session
        with translated_errors():
            return await session.connection()

    def _check_session(self, session: object) -> None:
        self.check_open()
        if not isinstance(session, AsyncConnection | AsyncSession):
            raise ConfigurationError(
                "session must be an AsyncSession or an AsyncConnection of SQLAlchemy, "
                f"not {type(session).__name__}."
            )

    async def close(self) -> None:
        """Close what was opened here: own engines and this process's use of the embedded server."""
        self._closed = True
        own, self._own = self._own, {}
        for loop, (_, disposer) in own.items():
            _disposers.discard(disposer)
            if loop is asyncio.get_running_loop():
                await disposer.aclose()
        # Other loops that still run close their own, now that nothing refers to the generators.
        release, self._release_server = self._release_server, None
        if release is not None:
            await anyio.to_thread.run_sync(release)


def _isolated(engine: AsyncEngine, level: str) -> AsyncEngine:
    """Return `engine` with an isolation level; making it takes as long as a short query."""
    levels = _isolated_engines.setdefault(engine, {})
    if (found := levels.get(level)) is None:
        found = levels[level] = engine.execution_options(isolation_level=level)
    return found


_isolated_engines: WeakKeyDictionary[AsyncEngine, dict[str, AsyncEngine]] = WeakKeyDictionary()


def run_in_transaction(
    settings: Settings,
    work: Callable[Concatenate[Connection, Arguments], T],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> T:
    """Return what `work` returns, called with a connection in a transaction of its own.

    For commands: it runs an event loop until the work is done.
    """

    async def run() -> T:
        database = Database(settings)
        try:
            async with database.transaction() as connection:
                return await connection.run_sync(work, *args, **kwargs)
        finally:
            await database.close()

    return asyncio.run(run())


def _embedded_folder(url: str) -> Path | None:
    """Return the data folder that ``embedded:///folder`` names; None is the default one."""
    if not url or url in {"embedded:", "embedded://"}:
        return None
    parts = urlsplit(url)
    if parts.netloc or not parts.path.strip("/") or parts.query:
        raise ConfigurationError(
            "An embedded server is named as embedded:///absolute/path/of/its/data, or embedded:// "
            "for the default folder."
        )
    return Path(unquote(parts.path))


# By pool and not by memory, for many may share one; an engine that is disposed of makes a new pool.
_first_loops: WeakKeyDictionary[Pool, asyncio.AbstractEventLoop] = WeakKeyDictionary()


# Held here, or a memory that is dropped unclosed would take its generator along while its loop is
# being shut down, when no connection can be closed in peace any more.
_disposers: set[AsyncGenerator[None]] = set()


async def _dispose_with_loop(engine: AsyncEngine) -> AsyncGenerator[None]:
    # asyncio.run closes a loop's unfinished async generators before the loop: the one moment to
    # close connections that can be reached neither earlier nor later.
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await engine.dispose()
