"""The one place where SQL is built: functions of the tables that return statements.

Nothing here runs a statement. ``owner_id = :owner`` stands on every table of each of them; values
are bound by name, and the name of a column is never one: SQLAlchemy would write it into SET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from sqlalchemy import Select

__all__ = ["AnySelect"]

AnySelect: TypeAlias = "Select[*tuple[Any, ...]]"
"""A Select of any columns."""
