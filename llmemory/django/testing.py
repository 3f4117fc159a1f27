"""A test runner that lets go of the test database before it is dropped."""

from __future__ import annotations

from typing import Any

from django.test.runner import DiscoverRunner

from llmemory.django.memories import close_memories

__all__ = ["MemoryTestRunner"]


class MemoryTestRunner(DiscoverRunner):
    """Django's runner, for projects whose memory lies in a database of ``DATABASES``.

    PostgreSQL refuses to drop a database that somebody is connected to.
    """

    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        """Close the memory's connections, then drop the test databases."""
        close_memories()
        super().teardown_databases(old_config, **kwargs)
