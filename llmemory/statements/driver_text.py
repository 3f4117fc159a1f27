"""Statements as a driver takes them: compiled once, and sent without going through SQLAlchemy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import BindParameter, ColumnClause, Dialect, Label
from sqlalchemy.sql.compiler import SQLCompiler

from llmemory.statements import AnySelect

__all__ = ["Arguments", "DriverText", "compiled_for"]

Arguments = Sequence[Any] | Mapping[str, Any]
"""Values in the order of a text's ``$1``, or by name for ``%(name)s``."""

_LATE = re.compile(r"__\[POSTCOMPILE_(\w+)\]")


@dataclass(frozen=True, slots=True, eq=False)
class DriverText:
    """A compiled statement.

    Attributes:
        text: SQL in the driver's style, with marks for values that stand in the text itself.
        names: The bound values, in the driver's order where it has one.
        is_positional: Whether the driver takes values by position.
    """

    text: str
    names: tuple[str, ...]
    is_positional: bool
    _late: Mapping[str, BindParameter[Any]]
    _compiled: SQLCompiler

    @property
    def parameters(self) -> dict[str, BindParameter[Any]]:
        """What the values are for, by name; those that stand in the text are literal_execute."""
        return {name: self._compiled.binds[name] for name in (*self.names, *self._late)}

    def bound(self, values: Mapping[str, Any]) -> tuple[str, Arguments]:
        """Return the text and the arguments for `values`."""
        text = self.text
        if self._late:
            text = _with_literals(self, tuple([values[name] for name in self._late]))
        if self.is_positional:
            return text, [values[name] for name in self.names]
        return text, {name: values[name] for name in self.names}


@lru_cache(maxsize=256)
def _with_literals(statement: DriverText, values: tuple[Any, ...]) -> str:
    """Return a statement's text with its late values; the same again is found by its address."""
    literals = {
        name: statement._compiled.render_literal_value(value, bound.type)
        for (name, bound), value in zip(statement._late.items(), values, strict=True)
    }
    return _LATE.sub(lambda mark: literals[mark[1]], statement.text)


def compiled_for(dialect: Dialect, statement: AnySelect) -> DriverText:
    """Return `statement` for the driver of `dialect`; what it holds of constants becomes text."""
    compiled = _compiler(dialect)(dialect, statement)
    late = {name: bind for name, bind in compiled.binds.items() if bind.literal_execute}
    order = compiled.positiontup if compiled.positional else compiled.binds
    assert order is not None, "a positional compiler knows the order"
    return DriverText(
        text=compiled.string,
        names=tuple(name for name in order if name not in late),
        is_positional=compiled.positional,
        _late=late,
        _compiled=compiled,
    )


_compilers: dict[str, type[SQLCompiler]] = {}


def _compiler(dialect: Dialect) -> type[SQLCompiler]:
    """Return a dialect's compiler, writing values that came with a statement, as a 0, as text."""
    if (known := _compilers.get(dialect.driver)) is not None:
        return known

    class Compiler(dialect.statement_compiler):  # type: ignore[misc, name-defined]
        def visit_bindparam(
            self, bindparam: BindParameter[Any], *arguments: Any, **options: Any
        ) -> Any:
            if not bindparam.required:
                options["literal_binds"] = True
            return super().visit_bindparam(bindparam, *arguments, **options)

        # Schemas and names that say nothing are left out: asyncpg has what is longer than 15 kB
        # planned at each call.
        def visit_column(self, column: ColumnClause[Any], *arguments: Any, **options: Any) -> str:
            name: str = super().visit_column(column, *arguments, **options)
            schema = getattr(column.table, "schema", None)
            return name.removeprefix(f"{self.preparer.quote_schema(schema)}.") if schema else name

        def visit_label(self, label: Label[Any], *arguments: Any, **options: Any) -> str:
            text: str = super().visit_label(label, *arguments, **options)
            value, _, name = text.rpartition(" AS ")
            is_column = isinstance(label.element, ColumnClause)
            return value if is_column and value.endswith(f".{name}") else text

    return _compilers.setdefault(dialect.driver, Compiler)
