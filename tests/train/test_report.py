import json
import math

import pytest
import torch

from protoseg.train.log import (
    MetricsLog,
    Monitor,
    MonitorStats,
    read_metrics,
)


def test_log_keeps_whole_lines_and_drops_what_comes_after_the_resumed_step(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    for step in (20, 40, 60):
        log.append({"step": step, "loss/total": 1.0 / step, "val": math.nan, "per": [1.0, math.inf]})
    with log.path.open("a") as stream:
        stream.write('{"step": 80, "lo')  # killed in the middle of a line
    log.truncate_after(40)
    log.append({"step": 60, "loss/total": torch.tensor(0.5)})
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40, 60]
    assert records[0]["val"] is None
    assert records[0]["per"] == [1.0, None]
    assert records[2]["loss/total"] == 0.5
    assert [p.name for p in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_truncating_a_log_that_does_not_exist_gives_an_empty_one(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate_after(0)
    assert read_metrics(log.path) == []


def test_a_record_needs_a_step(tmp_path):
    with pytest.raises(ValueError, match="integer 'step'"):
        MetricsLog(tmp_path / "metrics.jsonl").append({"loss": 1.0})


def test_a_damaged_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON .* delete that line"):
        read_metrics(path)


def monitor(**settings):
    return Monitor(["background", "sky", "sign"], [0.7, 0.29, 0.01], **settings)


def test_a_healthy_run_gives_no_warning():
    watch = monitor()
    for step in range(5):
        stats = MonitorStats(
            step, pseudo_rate=0.6, pseudo_share=[0.72, 0.27, 0.01], usage_entropy=[0.9, 0.8, math.nan],
            closest_pair=[0.5, 0.7, -1.0], active=[True] * 3, miou=0.5 - step / 300,
            unlabeled=True, disagreement=0.1,
        )  # fmt: skip
        assert watch.update(stats) == []


def test_statistics_that_do_not_apply_give_no_warning():
    assert monitor().update(MonitorStats(1)) == []


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"pseudo_rate": 0.0}, ["0.00%", "pseudo_labels.threshold"]),
        ({"pseudo_share": [0.995, 0.004, 0.001]}, ["99.5%", "'background'", "train.warmup_steps"]),
        ({"closest_pair": [0.5, 0.991, 0.2]}, ["'sky'", "0.991", "prototypes.num_prototypes"]),
        ({"usage_entropy": [0.05, 0.9, 0.9]}, ["'background'", "0.05", "prototypes.reseed_after"]),
        ({"miou": 0.45, "unlabeled": True}, ["from 50.0% at step 7 to 45.0%", "views.blur"]),
        ({"disagreement": 0.7}, ["70%", "views.jitter_strength"]),
    ],
)
def test_each_warning_comes_once_until_it_clears(stats, words):
    watch = monitor(best=(0.5, 7))
    (text,) = watch.update(MonitorStats(10, **stats))
    for word in words:
        assert word in text
    assert watch.update(MonitorStats(20, **stats)) == []
    healthy = MonitorStats(
        30, pseudo_rate=0.5, pseudo_share=[0.7, 0.29, 0.01], usage_entropy=[0.9] * 3,
        closest_pair=[0.1] * 3, miou=0.495, unlabeled=True, disagreement=0.1,
    )  # fmt: skip
    assert watch.update(healthy) == []
    assert len(watch.update(MonitorStats(40, **stats))) == 1


def test_settings_named_in_warnings_exist():
    from protoseg.config.sections import Config

    watch = monitor(patience=1, best=(0.5, 1))
    stats = MonitorStats(
        1, pseudo_rate=0.0, pseudo_share=[0.999, 0.001, 0.0], usage_entropy=[0.0] * 3, closest_pair=[1.0] * 3,
        miou=0.1, unlabeled=True, disagreement=0.9,
    )  # fmt: skip
    texts = watch.update(stats)
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
    stats = MonitorStats(1, pseudo_share=[0.7, 0.3, 0.0])
    assert [watch.update(stats) for _ in range(2)] == [[], []]
    (text,) = watch.update(stats)
    assert "class 'sign': labelled pixels exist" in text
    assert "pseudo_labels.per_class=true" in text
    assert watch.update(stats) == []


def test_a_class_without_labels_is_not_dead():
    watch = Monitor(["a", "b"], [1.0, 0.0], patience=1)
    assert watch.update(MonitorStats(1, pseudo_share=[0.95, 0.05])) == []
    assert watch.update(MonitorStats(2, pseudo_share=[1.0, 0.0])) == []


def test_data_that_is_mostly_background_has_not_collapsed():
    watch = Monitor(["background", "scratch"], [0.985, 0.015])
    assert watch.update(MonitorStats(1, pseudo_share=[0.985, 0.015])) == []
    assert len(watch.update(MonitorStats(2, pseudo_share=[0.9999, 0.0001]))) == 1


def test_before_the_first_pseudo_label_nothing_is_collapsed():
    assert monitor(patience=1).update(MonitorStats(1, pseudo_share=[0.0, 0.0, 0.0])) == []


def test_inactive_classes_have_no_prototypes_to_merge():
    stats = MonitorStats(
        1, closest_pair=[1.0, 0.2, 0.2], usage_entropy=[0.0, 1.0, 1.0], active=[False, True, True]
    )
    assert monitor().update(stats) == []
