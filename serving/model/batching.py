"""Collects waiting images of one size into one inference, for GPUs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ServingError

# threading cannot wait for ever and a bit
_LONGEST_S = 1e6

Result = dict[str, NDArray[Any]]
Run = Callable[[list[NDArray[np.uint8]], frozenset[str]], list[Result]]


@dataclass
class _Item:
    image: NDArray[np.uint8]
    names: frozenset[str]
    deadline: float
    future: Future[Result]


class MicroBatcher:
    """Greedy batches: a free runner takes everything of one size that waits, at most ``max_batch``.

    Args:
        run: Computes a list of equally sized HWC images; gives one result for each.
        max_batch: Largest batch.
        delay_s: Seconds that a batch that is not full waits for more; 0 never waits.
        max_queue: Waiting images after which new ones are refused.
        runners: Threads that call ``run``; two overlap copies with computation.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        delay_s: float = 0.0,
        max_queue: int = 256,
        runners: int = 2,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._delay_s = delay_s
        self._max_queue = max_queue
        self._waiting: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.on_batch: Callable[[int], None] = lambda size: None
        self._threads = [
            threading.Thread(target=self._loop, name=f"batch-{index}", daemon=True)
            for index in range(runners)
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, image: NDArray[np.uint8], names: frozenset[str], deadline: float) -> Result:
        """Wait for the result of one image.

        Args:
            image: ``(H, W, C)`` uint8.
            names: Outputs wanted.
            deadline: ``time.monotonic()`` after which the image is not computed any more.

        Raises:
            ServingError: 503 when too many wait, 504 after the deadline.
        """
        item = _Item(image, names, deadline, Future())
        with self._changed:
            if self._closed or len(self._waiting) >= self._max_queue:
                raise ServingError(503, "overloaded", "too many images are waiting", retry_after=1)
            self._waiting.append(item)
            self._changed.notify()
        try:
            return item.future.result(timeout=min(_LONGEST_S, max(0.0, deadline - time.monotonic())))
        except (TimeoutError, CancelledError):
            item.future.cancel()
            raise ServingError(504, "timeout", "the request waited too long for a batch") from None

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[_Item]:
        """The next batch; empty when the batcher is closed and nothing waits."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            if self._delay_s and not self._closed:
                until = time.monotonic() + self._delay_s
                while len(self._waiting) < self._max_batch:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
            batch: list[_Item] = []
            others: deque[_Item] = deque()
            while self._waiting and len(batch) < self._max_batch:
                item = self._waiting.popleft()
                if time.monotonic() > item.deadline:
                    item.future.cancel()
                elif batch and item.image.shape != batch[0].image.shape:
                    others.append(item)
                elif item.future.set_running_or_notify_cancel():
                    batch.append(item)
            self._waiting.extendleft(reversed(others))
            if self._waiting:
                self._changed.notify()
            return batch

    def _loop(self) -> None:
        while True:
            batch = self._take()
            if batch:
                self._compute(batch)
            elif self._closed:
                return

    def _compute(self, batch: list[_Item]) -> None:
        names = frozenset().union(*(item.names for item in batch))
        try:
            results = self._run([item.image for item in batch], names)
            self.on_batch(len(batch))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # one bad image must not fail its neighbours
            for item in batch:
                self._compute([item])
            return
        for item, result in zip(batch, results, strict=True):
            item.future.set_result(result)
