"""The best evaluation so far, and how long none was better."""

import math

import pytest

from protoseg.train.progress import Progress


def note(progress, fused, *, counts=True, min_delta=0.0):
    progress.step += 10
    return progress.note({"linear": 0.5, "fused": fused}, min_delta=min_delta, counts=counts)


def test_best_is_of_the_chosen_head():
    progress = Progress()
    assert progress.follow("fused")
    assert [note(progress, value) for value in (0.2, 0.4, 0.3, 0.4)] == [True, True, False, False]
    assert (progress.best_value, progress.best_step) == (0.4, 20)
    assert progress.best_miou == 0.5
    assert not progress.follow("fused")
    assert progress.follow("linear")
    assert (progress.best_value, progress.best_step, progress.stale) == (-1.0, 0, 0)


@pytest.mark.parametrize("missing", [{"linear": 0.5}, {"linear": 0.5, "fused": math.nan}])
def test_a_head_that_was_not_measured_is_never_best(missing):
    progress = Progress(best_head="fused")
    assert not progress.note(missing, min_delta=0.0, counts=True)
    assert progress.stale == 1


def test_patience_counts_evaluations_after_the_last_that_was_better_by_enough():
    progress = Progress(best_head="fused")
    # the warm-up sets the mark but uses nothing up
    for value in (0.30, 0.29, 0.28):
        note(progress, value, counts=False, min_delta=0.02)
    assert progress.stale == 0
    # 0.31 and 0.319 are best so far, but not by 0.02 over 0.30
    stale = []
    for value in (0.31, 0.319, 0.321, 0.2):
        note(progress, value, min_delta=0.02)
        stale.append(progress.stale)
    assert stale == [1, 2, 0, 1]
    assert progress.best_value == 0.321


def test_counters_survive_a_state_and_older_states_know_the_linear_head():
    progress = Progress(best_head="fused", step=3, stale=2, patience_value=0.25, best_value=0.3, best_step=2)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress
    old = Progress()
    old.load_state_dict({"step": 7, "teacher_updates": 4, "best_miou": 0.6})
    assert (old.step, old.best_head, old.best_value, old.patience_value) == (7, "linear", 0.6, 0.6)
