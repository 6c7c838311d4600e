"""The log of a run: whole lines, and sums over an interval."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from protoseg.processes import Processes
from protoseg.train.log import Interval, MetricsLog, read_metrics


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


def test_an_interval_averages_micro_steps_and_turns_counts_into_shares():
    interval = Interval()
    counts = {"valid": 100, "believed": 40, "contradicted": 10, "per_class": [30, 10]}
    for loss in (1.0, 3.0):
        parts = {"loss/total": torch.tensor(loss)}
        interval.add(SimpleNamespace(parts=parts, counts={}))
    interval.add(SimpleNamespace(
        parts={"loss/total": torch.tensor(5.0), "loss/uns_linear": torch.tensor(2.0)},
        counts={key: torch.tensor(value, dtype=torch.float32) for key, value in counts.items()},
    ))  # fmt: skip
    assert interval.summary(Processes()) == {
        "loss/total": 3.0, "loss/uns_linear": 2.0, "pseudo_label/rate": 0.4,
        "pseudo_label/class_share": [0.75, 0.25], "teacher_student/disagreement": 0.25,
    }  # fmt: skip
