"""A limit of the calls a second of each caller."""

import time
from collections.abc import Callable

from cachetools import LRUCache

MOST_CALLERS = 100_000


class RateLimit:
    """A rate for each caller, with bursts of up to a second's worth.

    The generic cell rate algorithm (ITU-T I.371): of each caller it keeps only the instant at
    which the calls let in so far would have ended, had they come evenly.

    Args:
        per_second: calls a second of one caller, above 0.
        clock: gives seconds that never go back.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._interval = 1.0 / per_second
        self._slack = max(1.0 - self._interval, 0.0)
        self._clock = clock
        self._due: LRUCache[str, float] = LRUCache(MOST_CALLERS)

    def take(self, caller: str) -> float:
        """Lets a call in and returns 0, or returns the seconds until the next one may come."""
        now = self._clock()
        due = max(self._due.get(caller, now), now)
        early = due - now - self._slack
        if early > 0.0:
            return early
        self._due[caller] = due + self._interval
        return 0.0
