"""Statements with their values in them, under names that clash with no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from sqlalchemy import BindParameter
from sqlalchemy.sql import ClauseElement, visitors

__all__ = ["with_values"]

Statement = TypeVar("Statement", bound=ClauseElement)


def with_values(statement: Statement, values: Mapping[str, Any]) -> Statement:
    """Return a copy of `statement` with `values` bound to the parameters of their names."""
    bound: dict[str, BindParameter[Any]] = {
        key: BindParameter(key, value, unique=True) for key, value in values.items()
    }

    def replaced(element: object, **options: object) -> BindParameter[Any] | None:
        if not isinstance(element, BindParameter) or element.key not in bound:
            return None
        parameter = bound[element.key]
        parameter.type = element.type
        return parameter

    return cast("Statement", visitors.replacement_traverse(statement, {}, replaced))
