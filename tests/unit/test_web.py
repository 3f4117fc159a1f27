"""What HTTP clients are told of errors."""

from __future__ import annotations

import logging

import pytest

from llmemory import (
    ConflictError,
    DocumentNotFoundError,
    LLMemoryError,
    ProviderUnavailable,
    StorageUnavailable,
    ValidationError,
)
from llmemory.web import answer_to


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValidationError("limit must be 1 or more.", field="limit"), 422),
        (DocumentNotFoundError("This owner has no such document."), 404),
        (ConflictError("A concurrent change won."), 409),
    ],
)
def test_callers_read_what_they_can_mend(error: LLMemoryError, status: int) -> None:
    answer = answer_to(error)
    assert (answer.status, answer.body, answer.headers) == (status, {"detail": str(error)}, {})


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (StorageUnavailable("The server db.internal does not answer."), "5"),
        (ProviderUnavailable("The endpoint api.internal does not answer."), "5"),
        (ProviderUnavailable("The endpoint api.internal is busy.", retry_after_s=0.2), "1"),
        (ProviderUnavailable("The endpoint api.internal is busy.", retry_after_s=61.0), "61"),
    ],
)
def test_what_is_unavailable_is_told_to_the_operator(
    error: LLMemoryError, seconds: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="llmemory.web"):
        answer = answer_to(error)
    assert (answer.status, answer.headers) == (503, {"Retry-After": seconds})
    assert "internal" not in answer.body["detail"]
    assert caplog.messages == [f"{type(error).__name__}: {error}"]


def test_a_subclass_is_answered_as_its_base() -> None:
    class TooLarge(ValidationError):
        pass

    assert answer_to(TooLarge("Too large.")).status == 422
