"""Calls of the functions that the migrations create in a schema."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.types import TypeEngine

from llmemory.constructs import SchemaFunction
from llmemory.models import Tables

__all__ = ["schema_function"]

T = TypeVar("T")


def schema_function(
    tables: Tables,
    name: str,
    *arguments: ColumnElement[Any],
    type_: TypeEngine[T] | type[TypeEngine[T]],
) -> SchemaFunction[T]:
    """Return a call of the function `name` in the schema of `tables`."""
    return SchemaFunction(tables.chunks, name, *arguments, type_=type_)
