"""Warnings in plain language, and the one rule for losses that are not finite."""

import math
from types import SimpleNamespace

import pytest
import torch

from protoseg.errors import TrainingStoppedError
from protoseg.train.monitor import FaultWatch, Monitor

KEYS = {
    "pseudo_rate": "pseudo_label/rate", "pseudo_share": "pseudo_label/class_share",
    "usage_entropy": "prototype/usage_entropy", "closest_pair": "prototype/closest_pair",
    "active": "prototype/active", "miou": "val/miou_linear", "contradicted": "teacher_student/disagreement",
}  # fmt: skip


def line(step, **values):
    """A line of the log."""
    return {"step": step, **{KEYS[name]: value for name, value in values.items()}}


def monitor(**settings):
    return Monitor(["background", "sky", "sign"], [0.7, 0.29, 0.01], **settings)


def test_a_healthy_run_gives_no_warning():
    watch = monitor()
    for step in range(5):
        stats = line(
            step, pseudo_rate=0.6, pseudo_share=[0.72, 0.27, 0.01], usage_entropy=[0.9, 0.8, math.nan],
            closest_pair=[0.5, 0.7, -1.0], active=[True] * 3, miou=0.5 - step / 300,
            contradicted=0.1,
        )  # fmt: skip
        assert watch.update(stats, unlabeled=True) == []


def test_statistics_that_do_not_apply_give_no_warning():
    assert monitor().update(line(1)) == []


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"pseudo_rate": 0.0}, ["0.00%", "pseudo_labels.threshold"]),
        ({"pseudo_share": [0.995, 0.004, 0.001]}, ["99.5%", "'background'", "train.warmup_steps"]),
        ({"closest_pair": [0.5, 0.991, 0.2]}, ["'sky'", "0.991", "prototypes.num_prototypes"]),
        ({"usage_entropy": [0.05, 0.9, 0.9]}, ["'background'", "0.05", "prototypes.reseed_after"]),
        ({"miou": 0.45}, ["from 50.0% at step 7 to 45.0%", "views.blur"]),
        ({"contradicted": 0.7}, ["70%", "views.jitter_strength"]),
    ],
)
def test_each_warning_comes_once_until_it_clears(stats, words):
    watch = monitor(best=(0.5, 7))
    (text,) = watch.update(line(10, **stats), unlabeled=True)
    for word in words:
        assert word in text
    assert watch.update(line(20, **stats), unlabeled=True) == []
    healthy = line(
        30, pseudo_rate=0.5, pseudo_share=[0.7, 0.29, 0.01], usage_entropy=[0.9] * 3,
        closest_pair=[0.1] * 3, miou=0.495, contradicted=0.1,
    )  # fmt: skip
    assert watch.update(healthy, unlabeled=True) == []
    assert len(watch.update(line(40, **stats), unlabeled=True)) == 1


def test_settings_named_in_warnings_exist():
    from protoseg.config.sections import Config

    watch = monitor(patience=1, best=(0.5, 1))
    stats = line(
        1, pseudo_rate=0.0, pseudo_share=[0.999, 0.001, 0.0], usage_entropy=[0.0] * 3, closest_pair=[1.0] * 3,
        miou=0.1, contradicted=0.9,
    )  # fmt: skip
    texts = watch.update(stats, unlabeled=True)
    assert len(texts) == 7
    sections = Config.model_fields
    named = {word.strip(".,;()") for text in texts for word in text.split() if "." in word.strip(".,;()")}
    settings = {n.split("=")[0] for n in named if n.split(".")[0] in sections}
    assert len(settings) > 8
    for name in settings:
        section, key = name.split(".")
        assert key in sections[section].annotation.model_fields, name


def test_a_dead_class_is_named_after_some_intervals_only():
    watch = monitor(patience=3)
    stats = line(1, pseudo_share=[0.7, 0.3, 0.0])
    assert [watch.update(stats, unlabeled=True) for _ in range(2)] == [[], []]
    (text,) = watch.update(stats, unlabeled=True)
    assert "class 'sign': labelled pixels exist" in text
    assert "pseudo_labels.per_class=true" in text
    assert watch.update(stats, unlabeled=True) == []


def test_a_class_without_labels_is_not_dead():
    watch = Monitor(["a", "b"], [1.0, 0.0], patience=1)
    assert watch.update(line(1, pseudo_share=[0.95, 0.05])) == []
    assert watch.update(line(2, pseudo_share=[1.0, 0.0])) == []


def test_data_that_is_mostly_background_has_not_collapsed():
    watch = Monitor(["background", "scratch"], [0.985, 0.015])
    assert watch.update(line(1, pseudo_share=[0.985, 0.015])) == []
    assert len(watch.update(line(2, pseudo_share=[0.9999, 0.0001]))) == 1


def test_before_the_first_pseudo_label_nothing_is_collapsed():
    assert monitor(patience=1).update(line(1, pseudo_share=[0.0, 0.0, 0.0])) == []


def test_inactive_classes_have_no_prototypes_to_merge():
    stats = line(1, closest_pair=[1.0, 0.2, 0.2], usage_entropy=[0.0, 1.0, 1.0], active=[False, True, True])
    assert monitor().update(stats) == []


def watch(last=None):
    states = SimpleNamespace(last=last, resume_command="python -m protoseg.train --resume")
    return FaultWatch(torch.device("cpu"), states)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(value):
    faults = watch()
    for step, seen in enumerate([1.0, 2.0, value, 1.0, value], start=1):
        faults.note(step, torch.tensor(seen))
    with pytest.raises(TrainingStoppedError, match=r"at step 3: start anew with a lower optim\.lr"):
        faults.stop_if_seen()


def test_the_last_state_and_how_to_go_on_from_it_are_named():
    faults = watch("runs/a/state/step_00000002")
    faults.note(1, torch.tensor(1e30))
    faults.stop_if_seen()
    faults.note(4, torch.tensor(math.nan))
    with pytest.raises(TrainingStoppedError) as caught:
        faults.stop_if_seen()
    assert "at step 4: runs/a/state/step_00000002 is from before that" in str(caught.value)
    assert "\n  python -m protoseg.train --resume optim.max_grad_norm=1\n" in str(caught.value)
