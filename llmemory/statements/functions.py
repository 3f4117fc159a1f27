"""Calls of the functions that the migrations create in a schema."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from llmemory.models import Tables, quoted_identifier

__all__ = ["schema_function"]

T = TypeVar("T")


def schema_function(
    tables: Tables,
    name: str,
    *arguments: ColumnElement[Any],
    type_: TypeEngine[T] | type[TypeEngine[T]],
) -> SchemaFunction[T]:
    """Return a call of the function `name` in the schema of `tables`."""
    return SchemaFunction(tables.schema, name, *arguments, type_=type_)


class SchemaFunction(FunctionElement[T]):
    """A function with its schema, which ``func`` quotes only in part."""

    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,
        ("schema_name", InternalTraversal.dp_string),
        ("function", InternalTraversal.dp_string),
    ]

    def __init__(
        self, schema: str, function: str, *arguments: ColumnElement[Any], type_: Any
    ) -> None:
        super().__init__(*arguments)
        self.schema_name = schema
        self.function = function
        self.type = type_() if isinstance(type_, type) else type_


@compiles(SchemaFunction)
def _compile(element: SchemaFunction[Any], compiler: SQLCompiler, **options: Any) -> str:
    name = f"{quoted_identifier(element.schema_name)}.{element.function}"
    if compiler.preparer._double_percents:
        name = name.replace("%", "%%")
    return f"{name}({compiler.process(element.clauses, **options)})"
