from __future__ import annotations

import time

import pytest

from serving.http.rate import RateLimiter


def test_buckets_refill_and_forget() -> None:
    now = [0.0]
    limiter = RateLimiter(2.0, 3, size=2, clock=lambda: now[0])
    assert [limiter.take(b"a") for _ in range(3)] == [0, 0, 0]
    assert limiter.take(b"a") == pytest.approx(0.5)
    now[0] = 0.5
    assert limiter.take(b"a") == 0
    assert limiter.take(b"a") > 0
    for caller in (b"b", b"c"):
        assert limiter.take(caller) == 0
    assert len(limiter._buckets) == 2
    # forgotten callers start with a full bucket
    assert limiter.take(b"a") == 0
    assert RateLimiter(0, 1, clock=time.monotonic).take(b"a") == 0
