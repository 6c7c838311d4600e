"""A study of tiny trainings on the embedded data, and made-up records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tiny import TINY

from benchmarks.accuracy.records import Best, Places, PseudoLabels, Record
from benchmarks.accuracy.runs import Cell, Run, plan, unique_runs
from benchmarks.accuracy.study import Study, load_study

STAGES = {"start": {"steps": 6, "overrides": {"method.preset": "supervised", "optim.lr": 0.001}}}


def write_study(folder: Path, **changes: Any) -> Path:
    """``small.yaml`` with its base configuration beside it."""
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    study: dict[str, Any] = {
        "name": "small",
        "title": "Embedded data",
        "config": str(folder / "base.yaml"),
        "warmup_share": 0.25,
        "evaluations": 2,
        "budgets": [{"name": "steps", "title": "4 steps", "steps": 4}],
        "seeds": [0],
        "labels": [{"name": "4", "count": 4}],
        "methods": [
            {"name": "supervised", "label": "supervised", "head": "linear",
             "overrides": {"method.preset": "supervised"}},
            {"name": "protoseg", "label": "protoseg", "head": "fused",
             "overrides": {"method.preset": "protoseg"}},
        ],
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study | changes))
    return path


def write_record(study: Study, run: Run, places: Places, value: float, **changes: Any) -> Record:
    """A record of ``run`` whose heads reach ``value`` (linear), +0.01 (prototype) and +0.02 (fused)."""
    heads = {"linear": value}
    if run.config.method.prototypes:
        heads |= {"prototype": value + 0.01, "fused": value + 0.02}
    values: dict[str, Any] = {
        "study": study.name, "run": run.name, "method": run.method.name, "labels": run.labels.name,
        "seed": run.seed, "command": "python -m protoseg.train", "date": "2026-01-02",
        "machine": {"processor": "Some CPU", "cores": 2, "memory_gib": 4.0, "threads": "1",
                    "load_average": value},
        "versions": {"torch": "2.9.0", "numpy": "2.0.0"}, "git_revision": "abc", "base_config": study.config,
        "settings": {}, "config_hash": run.hash,
        "data_hashes": {"labeled": f"l{run.labels.name}{run.seed}", "val": "v"}, "steps": run.steps,
        "warmup_steps": run.config.train.warmup_steps, "student_encoder_images": run.cost.student,
        "teacher_encoder_images": run.cost.teacher, "wall_seconds": 10.0, "attempts": 1, "jobs": 1,
        "miou": heads, "best": {h: Best(step=1, miou=v + 0.1) for h, v in heads.items()},
        "iou": {h: {"sky": v, "car": None} for h, v in heads.items()},
        "miou_by_step": {h: {1: v - 0.1, run.steps: v} for h, v in heads.items()},
        "pseudo_labels": PseudoLabels(step=run.steps, rate=0.5, class_share={"sky": 0.75, "car": 0.25})
        if run.config.method.unlabeled else None,
    }  # fmt: skip
    record = Record(**(values | changes))
    path = places.record(run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json())
    return record


def three_seeds(folder: Path) -> tuple[Study, list[Cell], Places]:
    """The study with three seeds and the records of all runs but one."""
    study = load_study(write_study(folder, seeds=[0, 1, 2]))
    cells = plan(study)
    places = Places(folder / "runs", folder / "results" / "accuracy" / "small")
    values = {"supervised": (0.40, 0.43, 0.46), "protoseg": (0.42, 0.41)}  # seed 2 is missing
    for run in unique_runs(cells):
        if run.seed < len(values[run.method.name]):
            write_record(study, run, places, values[run.method.name][run.seed])
    return study, cells, places
