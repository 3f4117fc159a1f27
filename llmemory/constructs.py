"""What neither SQLAlchemy nor pgvector has: vectors as text, fields, functions of a schema."""

from __future__ import annotations

from typing import Any, TypeVar

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import BindParameter, ColumnElement, Table, Text, cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine, UserDefinedType

__all__ = [
    "AnalysedWords",
    "Field",
    "HalfVector",
    "SchemaFunction",
    "quoted_identifier",
    "quoted_literal",
]

T = TypeVar("T")


class HalfVector(HALFVEC):
    """A ``halfvec`` whose values travel as text, whatever codecs a caller registered for them."""

    cache_ok = True

    def bind_expression(self, bindvalue: BindParameter[Any]) -> ColumnElement[Any]:
        """Return the text that is bound, as a vector."""
        return cast(cast(bindvalue, Text), HALFVEC(self.dim))


class AnalysedWords(UserDefinedType[str]):
    """The composite type of a chunk's words, read as text: asyncpg knows no vector within one."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        """Return the type's name, which is in the schema of the table."""
        return "analysed_words"

    def column_expression(self, colexpr: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the text of what is selected."""
        return cast(colexpr, Text)


class Field(FunctionElement[T]):
    """A field of a composite value."""

    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,
        ("field", InternalTraversal.dp_string),
    ]

    def __init__(self, composite: Any, field: str, type_: TypeEngine[T]) -> None:
        self.field = field
        self.type = type_
        super().__init__(composite)


@compiles(Field)
def _compile_field(element: Field[Any], compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)}).{element.field}"


def quoted_identifier(name: str) -> str:
    """Return `name` as SQL text; the dialect's own quoting would double ``%`` as well."""
    return '"' + name.replace('"', '""') + '"'


def quoted_literal(value: str) -> str:
    """Return `value` as SQL text, for statements that take no parameters."""
    quoted = "'" + value.replace("'", "''") + "'"
    # Read alike whether or not standard_conforming_strings is on.
    return quoted if "\\" not in value else " E" + quoted.replace("\\", "\\\\")


class SchemaFunction(FunctionElement[T]):
    """A function in the schema of a table, which ``func`` quotes only in part.

    Where ``schema_translate_map`` gives the table another schema, the function has it too.
    """

    _traverse_internals = [  # noqa: RUF012
        *FunctionElement._traverse_internals,
        ("schema_name", InternalTraversal.dp_string),
        ("function", InternalTraversal.dp_string),
    ]

    def __init__(
        self,
        table: Table,
        function: str,
        *arguments: ColumnElement[Any],
        type_: TypeEngine[T] | type[TypeEngine[T]],
    ) -> None:
        super().__init__(*arguments)
        # Not traversed, so that it remains the table where queries take an alias of it.
        self.table = table
        self.schema_name = table.schema
        self.function = function
        self.type = type_() if isinstance(type_, type) else type_


@compiles(SchemaFunction)
def _compile(element: SchemaFunction[Any], compiler: SQLCompiler, **options: Any) -> str:
    preparer = compiler.preparer
    schema = preparer.schema_for_object(element.table)
    if schema == element.table.schema:
        name = quoted_identifier(schema)
        if preparer._double_percents:
            name = name.replace("%", "%%")
    else:
        # What stands for a schema until it is known.
        name = preparer.quote_schema(schema)
    return f"{name}.{element.function}({compiler.process(element.clauses, **options)})"
