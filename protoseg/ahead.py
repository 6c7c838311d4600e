"""Work done ahead in threads and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def ahead_in_order(
    work: Callable[[Item], Found], items: Iterable[Item], *, workers: int, ahead: int, name: str
) -> Generator[tuple[Item, Future[Found]], None, None]:
    """Do something to each item in threads; at the end, also an early one, nothing new is begun.

    Args:
        work: What is done.
        items: Taken one by one as there is room.
        workers: Threads, at least 1.
        ahead: Items that are worked on or wait to be handed over, at least 1.
        name: What to call the threads.

    Yields:
        Each item in order, with what came of it (``result()`` waits, and raises what ``work`` raised).
    """
    pool = ThreadPoolExecutor(min(workers, ahead), thread_name_prefix=name)
    left, waiting = iter(items), deque[tuple[Item, Future[Found]]]()
    try:
        while True:
            waiting.extend((item, pool.submit(work, item)) for item in islice(left, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
