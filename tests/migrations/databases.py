"""Connections that migrations are run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool


@contextmanager
def transaction(url: str) -> Iterator[Connection]:
    """Give a connection of psycopg in a transaction, committed at the end."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.begin() as connection:
        yield connection
