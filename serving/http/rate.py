"""Token buckets for callers, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimiter:
    """Allows ``burst`` requests at once and ``rate`` a second after that, for each caller.

    Args:
        rate: Requests a second; 0 allows everything.
        burst: Requests at once.
        size: Callers that are remembered; the one seen longest ago is forgotten first.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, rate: float, burst: int, *, size: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, caller: bytes) -> float:
        """Take one token; seconds to wait when there is none (0: allowed)."""
        if self._rate == 0:
            return 0.0
        now = self._clock()
        tokens, then = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate
