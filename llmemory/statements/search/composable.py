"""The search as a part of other statements: a Select with every value in it.

A prebuilt search shares its parts and the names of its parameters with all others of its shape, so
that two of them could not stand in one statement, and a copy of it takes 20 ms. It is compiled
once instead and then stands in a subquery as text: what its parts are called is known inside
alone, and its parameters are named anew in each statement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BindParameter,
    ColumnClause,
    ColumnElement,
    Dialect,
    Float,
    TextClause,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import Compiled, SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from llmemory.models import Tables
from llmemory.statements import AnySelect
from llmemory.statements.driver_text import compiled_for
from llmemory.statements.search.shape import SearchShape
from llmemory.statements.search.statement import building, page_of, with_context, with_documents
from llmemory.statements.spaces import is_searched
from llmemory.types import SearchType

__all__ = ["composable", "settings_of"]

SettingValues = Mapping[str, str | int]


def composable(
    tables: Tables, shape: SearchShape, values: Mapping[str, Any], settings: SettingValues
) -> AnySelect:
    """Return the search of `shape` as a Select that takes no further values.

    Served by the same indexes as ``search``.

    Args:
        tables: Where to search.
        shape: What is searched.
        values: What ``search`` binds.
        settings: PostgreSQL's settings that its plan needs, to be found by ``settings_of``.
    """
    template = _template(tables, shape)
    parameters = [
        bindparam(
            name,
            values[name] if bound.required else bound.value,
            type_=bound.type,
            unique=True,
            literal_execute=bound.literal_execute,
        )
        for name, bound in template.parameters.items()
    ]
    written = _SearchText(template.text, settings).bindparams(*parameters)
    return select(written.columns(*template.columns).subquery())


class _Template(NamedTuple):
    text: str
    parameters: dict[str, BindParameter[Any]]
    columns: list[ColumnClause[Any]]


@lru_cache(maxsize=1024)
def _template(tables: Tables, shape: SearchShape) -> _Template:
    with building:
        statement = _hits(tables, shape)
        compiled = compiled_for(_dialect, statement)
    text = _MARKS.sub(_as_text, compiled.text)
    columns = [column(entry.key or "", entry.type) for entry in statement.selected_columns]
    return _Template(text, compiled.parameters, columns)


class _TextDialect(PGDialect):
    driver = "text"


# This style alone tells its parameters from what names and texts contain.
_dialect: Dialect = _TextDialect(paramstyle="pyformat")  # type: ignore[no-untyped-call]
_MARKS = re.compile(r"%\((\w+)\)s|__\[POSTCOMPILE_(\w+)\]|%%|:")


def _as_text(mark: re.Match[str]) -> str:
    """Return how text() writes what the compiler has written."""
    if name := mark[1] or mark[2]:
        return f":{name}"
    return "%" if mark[0] == "%%" else r"\:"


def _hits(tables: Tables, shape: SearchShape) -> AnySelect:
    documents = tables.documents
    page = page_of(tables, shape)
    statement = with_documents(tables, page)
    in_order = (page.c.score.desc(), page.c.best_rank, page.c.chunk_id)
    found: dict[str | None, ColumnElement[Any]] = {
        entry.key: entry for entry in statement.selected_columns
    }
    first: dict[str | None, ColumnElement[Any]] = {
        "document_id": found.pop("document_id"),
        "chunk_id": found.pop("chunk_id"),
        # Rounding errors of the fusion must not leave the range.
        "score": func.least(func.greatest(found.pop("score"), 0.0), 1.0, type_=Float).label(
            "score"
        ),
        "rank": func.row_number().over(order_by=in_order).label("rank"),
        "owner_id": documents.c.owner_id,
    }
    # For conditions on it, and so not as text.
    found["metadata"] = documents.c.metadata
    statement = statement.with_only_columns(*first.values(), *found.values())
    if shape.search_type is not SearchType.TEXT:
        # Nobody looks at the state afterwards, and half of the vectors is no answer.
        statement = statement.where(is_searched(tables))
    return with_context(tables, statement) if shape.context else statement


class _SearchText(TextClause):
    """The text of a search, which knows the settings that its plan needs."""

    inherit_cache = False
    _traverse_internals = [  # noqa: RUF012
        *TextClause._traverse_internals,
        ("settings", InternalTraversal.dp_plain_dict),
    ]

    def __init__(self, text: str, settings: SettingValues) -> None:
        super().__init__(text)
        self.settings = dict(settings)


_settings: WeakKeyDictionary[Compiled, dict[str, str | int]] = WeakKeyDictionary()


@compiles(_SearchText)
def _compile(element: _SearchText, compiler: SQLCompiler, **options: Any) -> str:
    if element.settings:
        needed = _settings.setdefault(compiler, {})
        for name, value in element.settings.items():
            known = needed.get(name, value)
            # Of two searches in one statement the more thorough one decides.
            needed[name] = max(known, value) if isinstance(known, int) else value
    text: str = compiler.visit_textclause(element, **options)  # type: ignore[no-untyped-call]
    return text


def settings_of(compiled: Compiled | None) -> SettingValues:
    """Return the settings that the searches in a compiled statement need."""
    return {} if compiled is None else _settings.get(compiled, {})
