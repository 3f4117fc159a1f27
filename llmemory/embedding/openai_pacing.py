"""When a request may be sent, and when it may be sent again. Needs the extra ``openai``."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NoReturn, TypeVar

import anyio
import tenacity

from llmemory.embedding.openai_messages import Setback
from llmemory.errors import ProviderUnavailable

__all__ = ["Budget", "Patience", "requested_wait_s"]

MINUTE_S = 60.0
LARGEST_BACKOFF_S = 30.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_STEP = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
# A number this large is a point in time, as some gateways send it, not a duration.
_EPOCH_S = 1e9

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """How one request is repeated: jittered exponential backoff on top of what is asked for.

    Args:
        provider: Who is asked, for messages.
        attempts: Failures after which to give up. Rate limits are none.
        backoff_s: Longest first pause, in seconds; the next ones are up to twice as long each.
        max_wait_s: Seconds of all pauses together. One that would exceed them is not begun.
    """

    def __init__(
        self, provider: str, *, attempts: int, backoff_s: float, max_wait_s: float
    ) -> None:
        self._provider = provider
        self._attempts = attempts
        self._max_wait_s = max_wait_s
        self._backoff = tenacity.wait_random_exponential(
            multiplier=backoff_s, max=LARGEST_BACKOFF_S
        )
        self._failures = 0

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns, called again while it raises Setback.

        Raises:
            ProviderUnavailable: Patience ran out.
        """

        async def once() -> T:
            return await attempt()

        retrying = tenacity.AsyncRetrying(
            sleep=anyio.sleep,
            retry=tenacity.retry_if_exception_type(Setback),
            after=self._count,
            wait=self._wait_s,
            stop=self._is_over,
            before_sleep=self._log,
            retry_error_callback=self._give_up,
        )
        result: T = await retrying(once)
        return result

    def _count(self, state: tenacity.RetryCallState) -> None:
        self._failures += not _setback(state).limited

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        # Added also where the provider names a time, or all clients would come back at once.
        return (_setback(state).wait_s or 0.0) + self._backoff(state)

    def _is_over(self, state: tenacity.RetryCallState) -> bool:
        too_long = state.idle_for + state.upcoming_sleep > self._max_wait_s
        return too_long or self._failures >= self._attempts

    def _log(self, state: tenacity.RetryCallState) -> None:
        level = logging.DEBUG if state.upcoming_sleep < 1 else logging.INFO
        _logger.log(
            level, "%s: %s; waiting %.1f s", self._provider, _setback(state), state.upcoming_sleep
        )

    def _give_up(self, state: tenacity.RetryCallState) -> NoReturn:
        setback = _setback(state)
        raise ProviderUnavailable(
            f"{self._provider} gave no embeddings in {state.attempt_number} attempts and "
            f"{state.idle_for:.1f} s of waiting. The last ended with: {setback}.",
            retry_after_s=setback.wait_s,
        ) from setback.cause


def _setback(state: tenacity.RetryCallState) -> Setback:
    setback = state.outcome.exception() if state.outcome else None
    if not isinstance(setback, Setback):
        raise TypeError("tenacity asked about an attempt that did not raise Setback")
    return setback


class Budget:
    """What may be sent in any 60 seconds, and a pause that the provider asks for.

    Shared by all event loops and threads of an embedder, as the provider counts them together.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = _Window(requests_per_minute or math.inf)
        self._tokens = _Window(tokens_per_minute or math.inf)
        self._clock = clock
        self._lock = threading.Lock()
        self._last = self._paused_until = -math.inf

    def reserve(self, tokens: int) -> float:
        """Reserve the next place for a request; return the seconds until its turn."""
        with self._lock:
            now = self._clock()
            # Turns come in the order of asking, or small requests would starve large ones.
            turn = self._requests.earliest(1, max(now, self._last))
            turn = self._tokens.earliest(tokens, turn)
            self._requests.spend(1, turn)
            self._tokens.spend(tokens, turn)
            self._last = turn
            return turn - now

    def pause(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def pause_left_s(self) -> float:
        """Return the seconds until the pause is over; 0 if there is none."""
        return max(0.0, self._paused_until - self._clock())


class _Window:
    """What was spent in the last 60 seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._spent: deque[tuple[float, int]] = deque()
        self._sum = 0

    def earliest(self, amount: int, start: float) -> float:
        # Calls come with a growing start: what is forgotten here is never needed again.
        while self._spent:
            spent_at, spent = self._spent[0]
            over = spent_at + MINUTE_S
            if over > start and self._sum + amount <= self._limit:
                break
            start = max(start, over)
            self._sum -= spent
            self._spent.popleft()
        return start

    def spend(self, amount: int, moment: float) -> None:
        if self._limit < math.inf:
            self._spent.append((moment, amount))
            self._sum += amount


def requested_wait_s(headers: Mapping[str, str], *, tokens: int) -> float | None:
    """Return the seconds that an answer asks to wait, or None if it does not say.

    In this order: ``retry-after-ms``; ``retry-after`` as seconds or as an HTTP date, which is
    compared with the answer's own ``date``; ``x-ratelimit-reset-requests`` and ``-tokens`` as
    durations like ``6m0s``, as seconds or as points in time, except of a limit that
    ``x-ratelimit-remaining-...`` shows to be not used up.

    Args:
        headers: Those of the answer, case-insensitive.
        tokens: Estimated tokens of the request.
    """
    if (wait_ms := _number(headers.get("retry-after-ms"))) is not None:
        return wait_ms / 1000
    if (retry_after := headers.get("retry-after")) is not None:
        wait_s = _number(retry_after)
        if wait_s is None:
            wait_s = _until(retry_after, _moment(headers.get("date")) or datetime.now(UTC))
        if wait_s is not None:
            return wait_s
    waits_s = []
    for limit, needed in (("requests", 1), ("tokens", tokens)):
        left = _number(headers.get(f"x-ratelimit-remaining-{limit}"))
        if left is None or left < needed:
            waits_s.append(_duration_s(headers.get(f"x-ratelimit-reset-{limit}")))
    return max((wait_s for wait_s in waits_s if wait_s is not None), default=None)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _duration_s(text: str | None) -> float | None:
    number = _number(text)
    if number is not None:
        return max(0.0, number - time.time()) if number > _EPOCH_S else number
    if text is None or not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(amount) * _UNITS_S[unit] for amount, unit in _STEP.findall(text))


def _moment(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _until(text: str, now: datetime) -> float | None:
    moment = _moment(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())
