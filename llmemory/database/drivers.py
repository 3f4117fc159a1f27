"""What asyncpg and psycopg do differently: connection arguments, COPY and fetching rows."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import sqlalchemy.exc
from pgvector import HalfVector
from sqlalchemy import Table, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util.concurrency import in_greenlet

from llmemory.database.driver_errors import translated, translated_errors
from llmemory.errors import (
    ConfigurationError,
)
from llmemory.settings import Settings

__all__ = [
    "copy_into",
    "create_engine",
    "fetch",
    "is_broken",
    "pooled",
    "takes_vectors",
]

_DRIVERS = {
    "postgres": "asyncpg",
    "postgresql": "asyncpg",
    "postgresql+asyncpg": "asyncpg",
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg_async": "psycopg",
}

# libpq parameters that asyncpg would send to the server as run-time settings: these only tune,
_TUNING = frozenset(
    {
        "connect_timeout",
        "gssdelegation",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
# and these promise something that asyncpg cannot keep, unless they have one of these values.
_PROMISES: dict[str, frozenset[str]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "hostaddr": frozenset(),
    "require_auth": frozenset(),
}


async def _connect_leaving_jit(**arguments: Any) -> Any:
    import asyncpg

    connection = await asyncpg.connect(**arguments)
    # It switches JIT off for the session in which it looks up types, and then on again in the next
    # one, behind a pooler another. Told that there is no JIT, it looks them up as well.
    connection._server_caps = connection._server_caps._replace(jit=False)
    return connection


# A pooler in transaction mode may run the next statement in another session, where no statement of
# ours is known, or one of somebody else's by that name. What has no name and is not kept, asyncpg
# parses, binds and runs in one message.
_UNNAMED: dict[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
    "async_creator_fn": _connect_leaving_jit,
}


def create_engine(url: str, settings: Settings) -> AsyncEngine:
    """Return an engine for `url`, which the driver itself parses, libpq parameters included.

    Args:
        url: ``postgresql://`` (asyncpg), ``postgresql+asyncpg://`` or ``postgresql+psycopg://``.
        settings: Pool sizes and time-outs, and whether there is a pooler.

    Raises:
        ConfigurationError: The URL is no PostgreSQL URL or cannot be parsed.
    """
    scheme, separator, rest = url.partition("://")
    driver = _DRIVERS.get(scheme)
    if not separator or driver is None:
        raise ConfigurationError(
            "The connection string must begin with postgresql://, postgresql+asyncpg:// or "
            "postgresql+psycopg://, or with embedded:// for the embedded server."
        )
    url = f"postgresql://{rest}"
    if not _is_valid(url):
        raise ConfigurationError(_UNPARSABLE)
    options: dict[str, Any] = {
        "pool_size": settings.pool_size,
        "max_overflow": settings.pool_overflow,
        "pool_timeout": settings.pool_timeout_s,
        # The connection used last: its plans and what they need are still in the caches.
        "pool_use_lifo": True,
        # Once and for all, as most calls need it, and not at each loan of a connection.
        "isolation_level": "AUTOCOMMIT",
        # Vectors and texts do not belong into messages or logs.
        "hide_parameters": True,
    }
    if driver == "psycopg":
        options["async_creator"] = _psycopg_creator(url, settings)
    else:
        options["connect_args"] = _asyncpg_arguments(url, settings)
        if settings.transaction_pooler:
            options["connect_args"] |= _UNNAMED
    engine = create_async_engine(f"postgresql+{driver}://", **options)
    event.listen(engine.sync_engine, "checkout", _refuse_ended)
    event.listen(engine.sync_engine, "do_connect", _refuse_to_wait)
    if driver == "asyncpg" and not settings.transaction_pooler:
        event.listen(engine.sync_engine, "connect", _have_take_vectors)
    return engine


_TYPE_OF_VECTORS = """
SELECT n.nspname FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.oid = pg_catalog.to_regtype('halfvec')
"""


def _have_take_vectors(connection: Any, record: ConnectionPoolEntry) -> None:
    """Have a new connection of asyncpg take vectors in binary, if the server knows them yet.

    Writing and reading 1,536 numbers as text takes longer than many a search.
    """
    record.info[_TAKES_VECTORS] = connection.run_async(_with_binary_vectors)


async def _with_binary_vectors(driver: Any) -> bool:
    schema = await driver.fetchval(_TYPE_OF_VECTORS)
    if schema is not None:
        await driver.set_type_codec(
            "halfvec",
            schema=schema,
            encoder=lambda vector: HalfVector(vector).to_binary(),
            decoder=HalfVector.from_binary,
            format="binary",
        )
    return schema is not None


_TAKES_VECTORS = "takes vectors"


async def takes_vectors(connection: AsyncConnection) -> bool:
    """Return whether the driver itself takes an array as a halfvec."""
    return bool((await pooled(connection)).info.get(_TAKES_VECTORS))


def _refuse_ended(connection: Any, record: object, proxy: object) -> None:
    """Have the pool connect anew instead of giving out what the server has closed meanwhile.

    Without a round trip, other than ``pool_pre_ping``: the sockets know.
    """
    driver = connection.driver_connection
    if hasattr(driver, "pgconn"):
        import psycopg

        with suppress(psycopg.Error):
            # The first may read the server's farewell, the second finds the end.
            driver.pgconn.consume_input()
            driver.pgconn.consume_input()
    if is_broken(driver):
        raise sqlalchemy.exc.DisconnectionError


def _refuse_to_wait(*connecting: object) -> None:
    """Have no connection made where nothing can wait: SQLAlchemy begins it, and warns of that."""
    if not in_greenlet():
        raise sqlalchemy.exc.MissingGreenlet


def _psycopg_creator(url: str, settings: Settings) -> Callable[[], Awaitable[Any]]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    given: dict[str, Any] | None = None
    with suppress(psycopg.Error):
        given = conninfo_to_dict(url)
    if given is None:
        # Outside the handler: psycopg's error shows the string, and with it the password.
        raise ConfigurationError(_UNPARSABLE)
    defaults: dict[str, Any] = {
        "connect_timeout": max(2, round(settings.connect_timeout_s)),
        "application_name": "llmemory",
    }
    conninfo = make_conninfo(**{**defaults, **given})
    options: dict[str, Any] = {"prepare_threshold": None} if settings.transaction_pooler else {}

    async def connect() -> Any:
        try:
            return await psycopg.AsyncConnection.connect(conninfo, **options)
        except psycopg.OperationalError:
            # libpq tells no SQLSTATE of a refused login; asyncpg does.
            await _raise_refusal(_asyncpg_arguments(url, settings))
            raise

    return connect


async def _raise_refusal(arguments: dict[str, Any]) -> None:
    import asyncpg

    try:
        connection = await asyncpg.connect(**arguments)
    except asyncpg.PostgresError as error:
        raise translated(error) from error
    except (OSError, ValueError, asyncpg.InterfaceError):
        return
    await connection.close()


_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})

_UNPARSABLE = (
    "The connection string cannot be parsed. Check port and sslmode, and percent-encode special "
    "characters in user, password and database, as in "
    "postgresql://user:p%40ss@host:5432/database?sslmode=require."
)


def _asyncpg_arguments(url: str, settings: Settings) -> dict[str, Any]:
    parts = urlsplit(url)
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, harmless in _PROMISES.items():
        if name in parameters and parameters[name] not in harmless:
            raise ConfigurationError(
                f"asyncpg cannot keep {name}={parameters[name]} of the connection string. Leave "
                "it out, or use psycopg: postgresql+psycopg://."
            )
    timeout = float(parameters.get("connect_timeout", 0)) or settings.connect_timeout_s
    ignored = _TUNING | _PROMISES.keys()
    kept = {name: value for name, value in parameters.items() if name not in ignored}
    kept.setdefault("application_name", "llmemory")
    query = urlencode(kept, safe="/:,")
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path or "/", query, ""))
    # A hybrid search with filters is longer than what asyncpg keeps plans of, unless told.
    return {"dsn": dsn, "timeout": timeout, "max_cacheable_statement_size": 0}


def _is_valid(url: str) -> bool:
    """Return whether the drivers can make sense of `url`.

    A question instead of an error: theirs would show the string, and with it the password.
    """
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        parameters = dict(given)
        ports = [host.rpartition("]")[2].partition(":")[2] for host in _hosts(parts.netloc)]
        ports += parameters.get("port", "").split(",")
        return (
            all(0 < int(port) < 65_536 for port in ports if port)
            and float(parameters.get("connect_timeout", 0)) >= 0
            and parameters.get("sslmode", "prefer") in _SSL_MODES
        )
    except ValueError:
        return False


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


async def copy_into(
    connection: AsyncConnection, table: Table, columns: Iterable[str], blocks: Iterable[bytes]
) -> None:
    """Send `blocks`, one binary COPY stream, into `columns` of `table`.

    The connection must have executed a statement in its transaction before: asyncpg's BEGIN under
    SQLAlchemy is lazy, and a COPY ahead of it would commit by itself.
    """
    raw = (await pooled(connection)).driver_connection
    names = list(columns)
    with translated_errors():
        if connection.dialect.driver == "asyncpg":
            await raw.copy_to_table(  # type: ignore[union-attr]
                table.name,
                source=_async_iterator(blocks),
                columns=names,
                schema_name=table.schema,
                format="binary",
            )
        else:
            from psycopg import sql
            from psycopg.copy import AsyncLibpqWriter
            from psycopg.pq import TransactionStatus

            statement = sql.SQL("COPY {}.{} ({}) FROM STDIN (FORMAT BINARY)").format(
                sql.Identifier(table.schema or ""),
                sql.Identifier(table.name),
                sql.SQL(", ").join(map(sql.Identifier, names)),
            )
            async with raw.cursor() as cursor:  # type: ignore[union-attr]
                try:
                    async with cursor.copy(statement) as copy:
                        async for block in _async_iterator(blocks):
                            await copy.write(block)
                except asyncio.CancelledError as cancelled:
                    # Cancelled on its way into COPY, psycopg leaves it open: nothing else, not
                    # even a rollback, could be executed.
                    if raw.info.transaction_status is TransactionStatus.ACTIVE:  # type: ignore[union-attr]
                        await AsyncLibpqWriter(cursor).finish(cancelled)
                    raise


async def fetch(
    connection: AsyncConnection, text: str, arguments: Any, *, past_sqlalchemy: bool
) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a compiled statement.

    Args:
        connection: Where to run it.
        text: SQL in the driver's style.
        arguments: Its values: a list, or a mapping for psycopg.
        past_sqlalchemy: Give it to the driver itself, which takes a third of the time. Nobody who
            listens to SQLAlchemy's events hears of it.
    """
    with translated_errors():
        if not past_sqlalchemy:
            result = await connection.exec_driver_sql(
                text, arguments if isinstance(arguments, dict) else tuple(arguments)
            )
            return [dict(row) for row in result.mappings()]
        driver: Any = (await pooled(connection)).driver_connection
        try:
            if connection.dialect.driver == "asyncpg":
                rows: Sequence[Mapping[str, Any]] = await driver.fetch(text, *arguments)
                return rows
            from psycopg.rows import dict_row

            async with driver.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(text, arguments)
                found: Sequence[Mapping[str, Any]] = await cursor.fetchall()
                return found
        except Exception:
            if is_broken(driver):
                await connection.invalidate()
            raise


async def pooled(connection: AsyncConnection) -> PoolProxiedConnection:
    """Return what the pool gave to a connection, without the greenlet that SQLAlchemy makes."""
    found = connection.sync_connection
    if found is None or found.invalidated:
        return await connection.get_raw_connection()
    return found.connection


def is_broken(driver: Any) -> bool:
    """Return whether a connection of asyncpg or psycopg is known to have ended."""
    return bool(driver.is_closed() if hasattr(driver, "is_closed") else driver.closed)


async def _async_iterator(blocks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block
        # The drivers give way to other tasks only where the server is slower than we are.
        await asyncio.sleep(0)
