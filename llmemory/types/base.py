"""What all values have in common, and names for kinds of arguments."""

from __future__ import annotations

import builtins
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vectors: TypeAlias = "NDArray[np.float32]"
"""Embeddings, one a row: shape ``(texts, dimensions)``, or ``(dimensions,)`` for a single one."""

HalfVectors: TypeAlias = "NDArray[np.float16]"
"""Embeddings as they are stored, in half precision; shaped alike."""

Identifier: TypeAlias = str | int | UUID
"""An id of yours; int and UUID become text."""

Moment: TypeAlias = datetime | date | str
"""A point in time; a naive one is UTC, text is ISO 8601."""

Timestamp: TypeAlias = Annotated[datetime, AfterValidator(lambda value: value.astimezone(UTC))]
"""A point in time, in UTC whichever time zone the driver gave it."""


class Choice(StrEnum):
    """An enumeration that accepts values and names in any case."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if isinstance(value, str):
            wanted = value.strip().lower()
            for member in cls:
                if wanted in (member.value, member.name.lower()):
                    return member
        return None


class Value(BaseModel):
    """A value with named fields, and no others."""

    model_config = ConfigDict(extra="forbid")

    def dict(self, **options: Any) -> builtins.dict[str, Any]:
        """Return the fields as a dict: ``model_dump`` under its older name."""
        return self.model_dump(**options)
