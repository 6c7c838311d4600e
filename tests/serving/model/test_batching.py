from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import ServingError
from serving.model.batching import MicroBatcher

NAMES = frozenset({"labels"})


class Network:
    """Doubles images; holds the first call until told to go on."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, images: list[NDArray[np.uint8]], names: frozenset[str]) -> list[dict[str, Any]]:
        self.batches.append(len(images))
        self.started.set()
        assert self.go.wait(10)
        if any((image == 99).any() for image in images):
            raise RuntimeError("bad image")
        return [{"labels": image * 2} for image in images]


def picture(value: int, size: int = 2) -> NDArray[np.uint8]:
    return np.full((size, size, 3), value, np.uint8)


def soon() -> float:
    return time.monotonic() + 10


def test_takes_everything_of_one_size_that_waits() -> None:
    network = Network()
    batcher = MicroBatcher(network, max_batch=4, runners=1)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(batcher, picture(0), NAMES, soon())]
        assert network.started.wait(10)
        # 1..4 of one size and one of another wait behind the first
        for value, size in ((1, 2), (2, 2), (7, 3), (3, 2), (4, 2)):
            futures.append(pool.submit(batcher, picture(value, size), NAMES, soon()))
            while len(batcher._waiting) < len(futures) - 1:
                time.sleep(0.001)
        network.go.set()
        results = [future.result(10)["labels"] for future in futures]
    batcher.close()
    assert [int(r.flat[0]) for r in results] == [0, 2, 4, 14, 6, 8]
    assert results[3].shape == (3, 3, 3)
    assert network.batches[0] == 1
    assert sorted(network.batches[1:]) == [1, 4]


def test_a_bad_image_spoils_only_itself() -> None:
    network = Network()
    batcher = MicroBatcher(network, max_batch=4, runners=1)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher, picture(0), NAMES, soon())
        assert network.started.wait(10)
        others = [pool.submit(batcher, picture(value), NAMES, soon()) for value in (1, 99, 2)]
        while len(batcher._waiting) < 3:
            time.sleep(0.001)
        network.go.set()
        assert first.result(10)["labels"].flat[0] == 0
        assert others[0].result(10)["labels"].flat[0] == 2
        assert others[2].result(10)["labels"].flat[0] == 4
        with pytest.raises(RuntimeError, match="bad image"):
            others[1].result(10)
    batcher.close()


def test_deadline_and_full_queue() -> None:
    network = Network()
    batcher = MicroBatcher(network, max_batch=1, max_queue=1, runners=1)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher, picture(0), NAMES, soon())
        assert network.started.wait(10)
        late = pool.submit(batcher, picture(1), NAMES, time.monotonic() + 0.05)
        while not batcher._waiting:
            time.sleep(0.001)
        with pytest.raises(ServingError) as refused:
            batcher(picture(2), NAMES, soon())
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        with pytest.raises(ServingError) as timed_out:
            late.result(10)
        assert timed_out.value.status == 504
        network.go.set()
        first.result(10)
    batcher.close()
    # the late image was never computed
    assert network.batches == [1]


def test_waits_for_company_when_told_to() -> None:
    network = Network()
    network.go.set()
    batcher = MicroBatcher(network, max_batch=2, delay_s=5.0, runners=1)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher, picture(value), NAMES, soon()) for value in (1, 2)]
        assert sorted(int(f.result(10)["labels"].flat[0]) for f in futures) == [2, 4]
    batcher.close()
    assert network.batches == [2]


def test_closed_batchers_refuse() -> None:
    network = Network()
    network.go.set()
    batcher = MicroBatcher(network, max_batch=2)
    batcher.close()
    with pytest.raises(ServingError):
        batcher(picture(1), NAMES, soon())
