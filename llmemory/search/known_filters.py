"""What searches by meaning have found out about filters.

What is known is forgotten after a while; times and recall depend on it, never which hits may pass.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from llmemory.recent import Recent
from llmemory.statements.search import NEAREST
from llmemory.validation.filters import Filters

__all__ = ["PROBES", "KnownFilter", "KnownFilters", "lies_together"]

MOST_KNOWN = 1024

PROBES = 12
"""Queries whose surroundings tell whether what passes a filter lies together."""

MOST_DISPERSED = 2.0
"""Variance over what chance makes; twelve counts left to chance are beyond it once in forty."""


@dataclass(frozen=True, slots=True)
class KnownFilter:
    """What is known of a filter.

    Attributes:
        passing: About how many of the owner's chunks pass.
        total: How many chunks the owner has, where there is no index and not few pass.
        found_by: The hash of the query whose search found that out.
        near: Of the nearest chunks to a query, how many passed, by the hash of the query.
        expires_s: When `passing` is to be found out again.
    """

    passing: int
    total: int = 0
    found_by: int | None = None
    near: Mapping[int, int] = field(default_factory=dict)
    expires_s: float = 0.0

    @property
    def is_probed(self) -> bool:
        """Whether enough surroundings are known."""
        return len(self.near) >= PROBES

    def tells_of(self, query: str) -> bool:
        """Return whether the surroundings of `query` are known."""
        return hash(query) in self.near


class KnownFilters:
    """What a memory knows of the filters that were used last.

    Dates within the same hour are taken for one.
    """

    def __init__(self, refresh_s: float) -> None:
        self._refresh_s = refresh_s
        self._known: Recent[tuple[str, Filters], KnownFilter] = Recent(MOST_KNOWN)

    def get(self, owner_id: str, filters: Filters) -> KnownFilter | None:
        """Return what is known, None if it is nothing or too old."""
        known = self._known.get((owner_id, _to_the_hour(filters)))
        return known if known is not None and time.monotonic() < known.expires_s else None

    def put_passing(
        self, owner_id: str, filters: Filters, query: str, passing: int, total: int = 0
    ) -> None:
        """Note how many pass, of how many, as the search of `query` has found out.

        Of old surroundings one is forgotten, to be looked at again.
        """
        old = self._known.get((owner_id, _to_the_hour(filters)))
        near = dict(old.near) if old is not None else {}
        found_by = hash(query)
        now_s = time.monotonic()
        # One alone, however many searches find out at once, or count again what is known.
        if old is not None and now_s < old.expires_s:
            found_by = old.found_by or found_by
        elif near:
            del near[next(iter(near))]
        known = KnownFilter(passing, total, found_by, near, now_s + self._refresh_s)
        self._known.put((owner_id, _to_the_hour(filters)), known)

    def put_near(self, owner_id: str, filters: Filters, query: str, near: int) -> None:
        """Note how many of the nearest to a query passed."""
        old = self._known.get((owner_id, _to_the_hour(filters)))
        if old is not None and not old.is_probed:
            known = replace(old, near={**old.near, hash(query): near})
            self._known.put((owner_id, _to_the_hour(filters)), known)


def _to_the_hour(filters: Filters) -> Filters:
    """Return `filters` as they are all hour: what began a week ago begins anew each time."""
    if filters.date_from is None and filters.date_to is None:
        return filters
    return replace(filters, date_from=_hour(filters.date_from), date_to=_hour(filters.date_to))


def _hour(moment: datetime | None) -> datetime | None:
    return moment and moment.replace(minute=0, second=0, microsecond=0)


def lies_together(near: Collection[int], share: float) -> bool:
    """Return whether what passes a filter lies together, rather than here and there.

    By the index of dispersion: counts of what passes around several queries vary as those of a
    binomial distribution if chance decides, and more if some places have much of it. Where all
    queries are asked in one place, that place has less of it than the others.

    Args:
        near: How many of the ``NEAREST`` chunks to a query passed, for two or more queries.
        share: How much of all passes, 0 to 1.
    """
    mean = sum(near) / len(near)
    by_chance = mean * (1 - mean / NEAREST)
    variance = sum((count - mean) ** 2 for count in near) / (len(near) - 1)
    return variance > MOST_DISPERSED * by_chance or mean < share * NEAREST / 2
