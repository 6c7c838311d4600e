"""What a step's collectives are counted as."""

from types import SimpleNamespace

import pytest

from benchmarks.communication import count, ring_bytes


def event(name, *shapes):
    return SimpleNamespace(name=name, input_shapes=list(shapes))


def test_collectives_are_counted_by_kind():
    events = [
        event("aten::add", [1000]), event("gloo:all_reduce", [10, 3]), event("gloo:all_reduce", [7], [2]),
        event("gloo:broadcast", [5]),
    ]  # fmt: skip
    assert count(events, 30) == {
        "bytes": {"gradients": 120, "other sums": 36, "broadcasts": 20}, "calls": 3,
    }  # fmt: skip


def test_gradients_that_were_not_summed_are_an_error():
    with pytest.raises(RuntimeError, match="there are 31 gradients"):
        count([event("gloo:all_reduce", [30])], 31)


def test_a_ring_sends_each_byte_nearly_twice():
    assert ring_bytes(80, 1) == 0
    assert ring_bytes(80, 8) == 140
