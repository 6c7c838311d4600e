"""Work ahead in threads."""

import threading
import time

import pytest

from protoseg.ahead import ahead_in_order


def test_results_come_in_order_and_no_more_than_asked_is_begun():
    taken, lock, most, running = [], threading.Lock(), 0, 0

    def items():
        for number in range(12):
            taken.append(number)
            yield number

    def work(number):
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (3 - number % 3))  # later ones are done first
        with lock:
            running -= 1
        return number * number

    seen = []
    for number, found in ahead_in_order(work, items(), workers=3, ahead=4, name="test"):
        assert found.result() == number * number
        seen.append(number)
        assert len(taken) <= number + 4
    assert seen == list(range(12))
    assert 1 < most <= 3


def test_an_error_is_that_of_its_item_and_the_rest_goes_on():
    results = ahead_in_order(lambda n: 1 / n, (1, 0, 2), workers=2, ahead=2, name="test")
    assert [item for item, found in results if found.exception() is not None] == [0]


def test_who_stops_early_leaves_nothing_running():
    begun = []
    results = ahead_in_order(begun.append, range(100), workers=2, ahead=3, name="early")
    next(results)[1].result()
    results.close()
    assert len(begun) <= 3
    assert not any(thread.name.startswith("early") for thread in threading.enumerate())


def test_the_error_of_an_item_that_cannot_be_taken_is_raised():
    def items():
        yield 1
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        list(ahead_in_order(abs, items(), workers=1, ahead=2, name="test"))
