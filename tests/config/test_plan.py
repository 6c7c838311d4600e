"""From epochs and nulls to steps."""

import pytest
from tiny import tiny_config

from protoseg.config.plan import make_schedule, run_length
from protoseg.errors import ConfigError


def schedule(labeled=4, unlabeled=6, world=1, **sections):
    return make_schedule(tiny_config(**sections), labeled, unlabeled, world)


def test_an_epoch_passes_over_the_unlabelled_images_in_global_batches():
    config = tiny_config(train={"max_steps": None, "epochs": 2.5, "batch_size": 2, "accumulate": 3})
    # 100 images in batches of 2 x 3 x 2 are 9 steps, the last one not full
    assert run_length(config.train, 100, world=2) == (12, 9, 22)


def test_without_unlabelled_images_an_epoch_passes_over_the_labelled_ones():
    made = schedule(labeled=10, unlabeled=100, method={"preset": "supervised"})
    assert made.length.steps_per_epoch == 5
    assert not made.phase(5).unlabeled


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"max_steps": 100}, 3),
        ({"max_steps": 8}, 2),
        ({"max_steps": 100, "start_from": "runs/first"}, 0),
        ({"max_steps": 100, "warmup_steps": 7}, 7),
    ],
)
def test_warm_up_is_one_epoch_at_most_a_quarter_and_nothing_after_a_first_stage(train, expected):
    assert schedule(train={"warmup_steps": None, **train}).warmup_steps == expected


@pytest.mark.parametrize(("since", "expected"), [(-1, 0.0), (0, 0.0), (50, 0.4), (100, 0.8), (1000, 0.8)])
def test_weight_ramp(since, expected):
    made = schedule(train={"max_steps": 2000}, prototypes={"weight": 0.8, "weight_ramp": 100})
    phase = made.phase(made.prototype_starts[0] + since)
    assert phase.prototype_weight == pytest.approx(expected)
    assert phase.prototypes == (since >= 0)


def test_what_is_due_when():
    made = schedule(train={"max_steps": 10, "log_every": 4, "eval_every": 3, "save_every": 5})
    assert [step for step in range(1, 11) if made.logs(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if made.evaluates(step)] == [3, 6, 9, 10]
    assert [step for step in range(1, 11) if made.saves(step)] == [5, 10]
    assert [step for step in range(1, 11) if made.pauses(step)] == [3, 4, 5, 6, 8, 9, 10]


def test_evaluations_are_five_in_a_run_unless_set_and_states_come_with_them():
    made = schedule(train={"max_steps": 21})
    assert (made.eval_every, made.save_every) == (5, 5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"max_steps": 6, "warmup_steps": 6}}, "leaves no step for unlabelled images"),
        ({"prototypes": {"start_delay": 9}}, "prototypes would start at step 11 of 6"),
        ({"prototypes": {"restart_step": 2}}, "must lie between the start"),
        ({"train": {"batch_size": 1}}, "needs two images"),
    ],
)
def test_parts_that_do_not_fit_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        schedule(**sections)
