"""Settings that a search brings along, into whichever statement of a caller it has become part of.

``search_statement`` is executed by sessions and connections that know nothing of this library, so
every engine is listened to; a statement without a search is let through at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, ExecutionContext

from llmemory.constructs import quoted_literal
from llmemory.statements.search import settings_of

__all__: list[str] = []

FORMER = "llmemory_former_settings"
"""Where a connection's ``info`` keeps what to bring back after the statement."""


@event.listens_for(Engine, "before_cursor_execute")
def _set(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    executemany: bool,
) -> None:
    needed = settings_of(context.compiled) if context is not None else {}
    if not needed:
        return
    is_autocommit = _is_autocommit(connection)
    is_streamed = bool(getattr(context, "_is_server_side", False))
    if is_autocommit:
        if is_streamed:
            return
        connection.exec_driver_sql("BEGIN")
    # A statement of the dialect's own first: asyncpg's transaction begins with it.
    names = ", ".join(f"current_setting('{name}', true)" for name in needed)
    former = connection.exec_driver_sql(f"SELECT {names}").one()
    _assign(connection, needed)
    # What is streamed is still to be read when the statement is done.
    if not is_streamed:
        values = None if is_autocommit else dict(zip(needed, former, strict=True))
        connection.info[FORMER] = (context, values)


@event.listens_for(Engine, "after_cursor_execute")
def _restore(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    executemany: bool,
) -> None:
    set_for, former = connection.info.get(FORMER, (None, None))
    if set_for is None or set_for is not context:
        return
    del connection.info[FORMER]
    if former is None:
        connection.exec_driver_sql("COMMIT")
    else:
        _assign(connection, former)


@event.listens_for(Engine, "handle_error")
def _roll_back(failed: ExceptionContext) -> None:
    connection = failed.connection
    if connection is None or connection.invalidated or FORMER not in connection.info:
        return
    # In a transaction of the caller's, rolling that back takes the settings along.
    if connection.info.pop(FORMER)[1] is None:
        with suppress(Exception):
            connection.exec_driver_sql("ROLLBACK")


def _is_autocommit(connection: Connection) -> bool:
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


def _assign(connection: Connection, values: Mapping[str, str | int | None]) -> None:
    """Send all by the simple protocol, in one round trip."""
    commands = "; ".join(f"SET LOCAL {name} = {_literal(value)}" for name, value in values.items())
    options = {"prepare": False} if connection.dialect.driver == "psycopg" else {}
    dbapi: Any = connection.connection.dbapi_connection
    if connection.dialect.is_async:
        dbapi.run_async(lambda driver: driver.execute(commands, **options))
    else:
        with dbapi.cursor() as cursor:
            cursor.execute(commands, **options)


def _literal(value: str | int | None) -> str:
    return "DEFAULT" if value is None else quoted_literal(str(value))
