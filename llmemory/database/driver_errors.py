"""What SQLAlchemy and the drivers raise, turned into the library's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc

from llmemory.errors import (
    ConfigurationError,
    ConflictError,
    LLMemoryError,
    SchemaMissing,
    StorageError,
    StorageUnavailable,
)

__all__ = ["server_message", "sqlstate_of", "translated", "translated_errors"]


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that `error` or the driver error within carries, if any."""
    original = getattr(error, "orig", None) or error
    # psycopg2, which an application may migrate with, calls it pgcode.
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)


def server_message(error: BaseException) -> str:
    """Return what the server said, without detail and hint: it may quote rows of theirs.

    Of the classes of SQLSTATE that are about statements and tables it names these alone.
    """
    cause = _driver_error_of(error)
    diagnosis = getattr(cause, "diag", None)
    said = getattr(cause, "message", None) or getattr(diagnosis, "message_primary", None)
    return str(said or "nothing")


def _driver_error_of(error: BaseException) -> BaseException:
    # SQLAlchemy wraps asyncpg's errors twice.
    original = getattr(error, "orig", None) or error
    return getattr(original, "__cause__", None) or original


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn driver and SQLAlchemy errors into ours, told apart by SQLSTATE."""
    try:
        yield
    except (LLMemoryError, asyncio.CancelledError):
        raise
    except sqlalchemy.exc.TimeoutError as error:
        raise StorageUnavailable(
            "No connection became free in time. Raise pool_size or pool_overflow, or look for "
            "connections that are held too long."
        ) from error
    except (sqlalchemy.exc.DBAPIError, OSError, TimeoutError) as error:
        raise translated(error) from error
    except sqlalchemy.exc.InvalidRequestError as error:
        raise ConfigurationError(
            "The session cannot be used: it is closed, its transaction has failed and must be "
            "rolled back, or two tasks use it at once."
        ) from error
    except Exception as error:
        if _is_driver_error(error):
            raise translated(error) from error
        raise


def _is_driver_error(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in {"asyncpg", "psycopg"}


_UNREACHABLE = (
    "The database could not be reached: check that the server runs and that host, port, network "
    "and sslmode are right."
)

_FOREIGN_SESSION = (
    "A prepared statement was not found, or found twice: a pooler in transaction mode stands "
    "before the server. Set transaction_pooler; an engine of yours must not prepare statements."
)

_CONFIGURATION = {
    "28P01": "The database refused the password; check user and password.",
    "28000": "The database refused the login; check user, password and pg_hba.conf.",
    "3D000": "The database named in the connection string does not exist; create it or mend it.",
    "42704": "The server does not know a parameter of the connection string, or pgvector's types.",
    "25P01": "The session is in AUTOCOMMIT, where it has no transaction to join; give one without.",
    "26000": _FOREIGN_SESSION,
    "42P05": _FOREIGN_SESSION,
    "42501": "The database role lacks a privilege; grant it on the schema and its tables. If row "
    "level security is on, docs/tenants.md says which role may do what.",
}


def translated(error: BaseException) -> LLMemoryError:
    """Return what a driver or SQLAlchemy raised as an error of ours."""
    state = sqlstate_of(error)
    if state is None:
        # asyncpg's InternalClientError is how it meets a server's farewell not read yet.
        if isinstance(error, sqlalchemy.exc.DBAPIError) and not (
            error.connection_invalidated
            or isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
            or type(error.orig).__name__ == "InternalClientError"
        ):
            return StorageError("The database driver refused a value or a statement.")
        return StorageUnavailable(_UNREACHABLE)
    if state in _CONFIGURATION:
        return ConfigurationError(_CONFIGURATION[state])
    if state in {"42P01", "3F000", "42703", "42883"}:
        return SchemaMissing(
            "A table or function of the memory's schema is missing. Run `llmemory db upgrade`, "
            "with --schema where it is not the configured one."
        )
    if state in {"23505", "23503", "40001", "40P01", "55P03"}:
        cause = _driver_error_of(error)
        diagnosis = getattr(cause, "diag", None)
        constraint = getattr(cause, "constraint_name", None) or getattr(
            diagnosis, "constraint_name", None
        )
        return ConflictError(
            "A concurrent change won; nothing was stored. Try again.",
            sqlstate=state,
            constraint=constraint,
        )
    if state == "08P01":
        return StorageUnavailable(
            "The server or a pooler before it refused the connection. A pooler's log says why: a "
            "user or database that does not exist, a password, a server that is away.",
            sqlstate=state,
        )
    if state[:2] in {"08", "53"} or state in {"57P01", "57P02", "57P03", "57P05"}:
        return StorageUnavailable(
            "The database is not available now; try again later.", sqlstate=state
        )
    if state == "25P02":
        return StorageError(
            "The transaction has failed before; roll it back first.", sqlstate=state
        )
    return StorageError(f"The database refused the statement (SQLSTATE {state}).", sqlstate=state)
