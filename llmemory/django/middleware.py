"""Errors of a memory as HTTP statuses."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.deprecation import MiddlewareMixin

from llmemory.web import ANSWERED, answer_to

__all__ = ["ErrorMiddleware"]


class ErrorMiddleware(MiddlewareMixin):
    """Answer errors of a memory with their status and ``{"detail": "..."}``.

    ValidationError becomes 422, DocumentNotFoundError 404, ConflictError 409, StorageUnavailable
    and ProviderUnavailable 503 with ``Retry-After``. Other errors stay unhandled: a status 500.
    """

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the response to an error that a view raised, or None to leave it alone."""
        if not isinstance(exception, tuple(ANSWERED)):
            return None
        answer = answer_to(exception)
        return JsonResponse(answer.body, status=answer.status, headers=answer.headers)
