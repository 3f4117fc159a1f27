"""What a web application answers where a call of a memory failed: one table for all frameworks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmemory.errors import (
    ConflictError,
    DocumentNotFoundError,
    LLMemoryError,
    ProviderUnavailable,
    StorageUnavailable,
    ValidationError,
)

__all__ = ["ANSWERED", "Answer", "answer_to"]

_logger = logging.getLogger(__name__)

ANSWERED: Mapping[type[LLMemoryError], int] = {
    ValidationError: 422,
    DocumentNotFoundError: 404,
    ConflictError: 409,
    StorageUnavailable: 503,
    ProviderUnavailable: 503,
}
"""The HTTP status of each error that a caller can do something about.

The others are a matter of the set-up: they stay errors of the application, answered with 500.
"""

UNAVAILABLE = 503
RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class Answer:
    """An HTTP response to a failed call: its status, JSON body and headers."""

    status: int
    body: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)


def answer_to(error: Exception) -> Answer:
    """Return the response to `error`, one of the classes in ``ANSWERED``.

    What is unavailable is logged: its message speaks to the operator, not to the caller.
    """
    status = next(status for kind, status in ANSWERED.items() if isinstance(error, kind))
    if status != UNAVAILABLE:
        return Answer(status, {"detail": str(error)})
    _logger.error("%s: %s", type(error).__name__, error)
    wanted_s = getattr(error, "retry_after_s", None) or RETRY_AFTER_S
    return Answer(
        status,
        {"detail": "The service is not available now; try again later."},
        {"Retry-After": str(math.ceil(wanted_s))},
    )
