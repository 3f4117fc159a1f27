"""Values that travel as text, whatever codecs a caller registered for them on the connection."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json
from sqlalchemy import ColumnElement, Dialect, Text, cast, type_coerce
from sqlalchemy.types import TypeDecorator

__all__ = ["json_value", "read_json"]


def json_value(text: str) -> Any:
    """Return the value of a JSON text."""
    try:
        return from_json(text)
    except ValueError:
        # It is the faster one, but goes down 200 levels at most.
        return json.loads(text)


class _JsonText(TypeDecorator[Any]):
    impl = Text
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json_value(value)


def read_json(column: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """Select a JSON column as `name`."""
    return type_coerce(cast(column, Text), _JsonText()).label(name)
