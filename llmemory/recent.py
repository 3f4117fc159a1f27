"""What was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Recent"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps the values that were used last. Threads may share it.

    Args:
        size: How many values are kept; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # Each access is one step of the interpreter: no lock that a fork could leave taken.
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return the value kept for `key`, if there is one."""
        with suppress(KeyError):
            self._values.move_to_end(key)
            return self._values[key]
        return None

    def put(self, key: K, value: V) -> None:
        """Keep a value, and drop what was used longest ago."""
        if self._size:
            self._values[key] = value
        while len(self._values) > self._size:
            with suppress(KeyError):
                self._values.popitem(last=False)
