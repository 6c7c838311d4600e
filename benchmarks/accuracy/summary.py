"""Figures of a study from the records that exist: means over seeds, spread, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.records import Places, Record, read_record
from benchmarks.accuracy.runs import Cell, cost_of, unique_runs
from benchmarks.accuracy.study import Study, StudyError


@dataclass(frozen=True)
class Found:
    """Records of a study, and what is not there."""

    records: dict[str, Record]
    """By run."""
    missing: list[str]
    """Runs without a record."""
    other_settings: list[str]
    """Runs whose record was made with other settings; they are not used."""


def find_records(cells: list[Cell], places: Places) -> Found:
    """Read the records of all cells.

    Raises:
        StudyError: If a record is damaged, or runs that must share their images do not.
    """
    found = Found({}, [], [])
    for run in unique_runs(cells):
        record = read_record(places.record(run.name))
        if record is None:
            found.missing.append(run.name)
        elif record.config_hash != run.hash:
            found.other_settings.append(run.name)
        else:
            found.records[run.name] = record
    check_same_images(list(found.records.values()))
    return found


def check_same_images(records: list[Record]) -> None:
    """Runs of one study share val; runs of one label count and seed share all lists.

    Raises:
        StudyError: If they do not.
    """
    first: dict[tuple[str, ...], Record] = {}
    for record in records:
        for split, digest in record.data_hashes.items():
            place = (split,) if split == "val" else (split, record.labels, str(record.seed))
            other = first.setdefault(place, record)
            if other.data_hashes[split] != digest:
                raise StudyError(
                    f"{record.run} and {other.run} were trained with different {split} images "
                    f"({digest[:12]} and {other.data_hashes[split][:12]}): delete the record with the wrong "
                    "ones and run the study again"
                )


def spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; null for one seed), n, and the values."""
    values = list(by_seed.values())
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "by_seed": {str(seed): value for seed, value in by_seed.items()},
    }


def short_spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and n."""
    full = spread(dict(enumerate(values)))
    return {key: full[key] for key in ("mean", "sd", "n")}


def summarize(study: Study, cells: list[Cell], found: Found) -> dict[str, Any]:
    """The summary file's figures; shares are in [0, 1]."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.run.name in found.records:
            key = (cell.budget.name, cell.run.labels.name, cell.run.method.name)
            groups.setdefault(key, []).append(cell)
    records = list(found.records.values())
    return {
        "study": study.name,
        "title": study.title,
        "config": study.config,
        "baseline": study.baseline,
        "start": first_stages(study, cells, found.records),
        "budgets": [budget.model_dump(exclude={"labels"}) for budget in study.budgets],
        "labels": [{"name": item.name, "count": item.count} for item in study.labels],
        "methods": [{"name": m.name, "label": m.label, "head": m.head} for m in study.methods],
        "machines": machines(records),
        "git_revisions": sorted({str(record.git_revision) for record in records}),
        "cells": [summarize_cell(group, found.records) for group in groups.values()],
        "differences": differences(study, groups, found.records),
        "missing": found.missing,
        "other_settings": found.other_settings,
    }


def first_stages(study: Study, cells: Sequence[Cell], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Steps of the shared first stage, if any, and the linear head's mIoU after it by label count."""
    if study.start is None:
        return None
    by_labels: dict[str, dict[int, float]] = {}
    for run in unique_runs(list(cells)):
        # a seed of which only the first stage is there has no figure to compare with
        if run.start is not None and run.start.name in records and run.name in records:
            figure = records[run.start.name].miou["linear"]
            by_labels.setdefault(run.labels.name, {})[run.seed] = figure
    return {
        "steps": study.start.steps,
        "miou": {labels: spread(by_seed) for labels, by_seed in by_labels.items()},
    }


def machines(records: list[Record]) -> list[dict[str, Any]]:
    """The machines that trained, each once; their load at the time is left out."""
    kept = [{k: v for k, v in record.machine.items() if k != "load_average"} for record in records]
    return [item for number, item in enumerate(kept) if item not in kept[:number]]


def summarize_cell(group: Sequence[Cell], records: Mapping[str, Record]) -> dict[str, Any]:
    """Figures of one method with one label count and budget over its seeds."""
    cell = group[0]
    run = cell.run
    by_seed = {item.run.seed: records[item.run.name] for item in group}
    first = next(iter(by_seed.values()))
    rates = {s: r.pseudo_labels.rate for s, r in by_seed.items() if r.pseudo_labels is not None}
    return {
        "budget": cell.budget.name,
        "labels": run.labels.name,
        "method": run.method.name,
        "head": run.method.head,
        "seeds": list(by_seed),
        "steps": run.steps,
        "warmup_steps": run.config.train.warmup_steps,
        "student_encoder_images": run.cost.student,
        "teacher_encoder_images": run.cost.teacher,
        "wall_seconds": spread({s: r.wall_seconds for s, r in by_seed.items()}),
        "miou": {head: spread({s: r.measured.miou[head] for s, r in by_seed.items()}) for head in first.miou},
        "best": {head: spread({s: r.best[head].miou for s, r in by_seed.items()}) for head in first.best},
        "iou": {head: class_spread([r.measured.iou[head] for r in by_seed.values()]) for head in first.iou},
        "curve": {
            head: curve(cell, list(by_seed.values()), head, start_values(group, records))
            for head in first.miou_by_step
        },
        "pseudo_label_rate": spread(rates) if rates else None,
        "pseudo_label_class_share": class_spread(
            [r.pseudo_labels.class_share for r in by_seed.values() if r.pseudo_labels is not None]
        ),
    }


def class_spread(by_run: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Mean, standard deviation and n of each class over runs; null for a class that none could measure."""
    table = {}
    for name in by_run[0] if by_run else ():
        values = [value for item in by_run if (value := item[name]) is not None]
        table[name] = short_spread(values) if values else None
    return table


def start_values(group: Sequence[Cell], records: Mapping[str, Record]) -> list[float]:
    """The linear head's mIoU after the first stages that the group's runs start from."""
    names = [item.run.start.name for item in group if item.run.start is not None]
    return [records[name].miou["linear"] for name in names if name in records]


def curve(cell: Cell, records: Sequence[Record], head: str, before: Sequence[float]) -> list[dict[str, Any]]:
    """MIoU of a head at each evaluation, with the encoder images until then.

    Step 0 is the linear head of the first stage, where there is one (``before``).
    """
    points = []
    if before:
        points.append({"step": 0, "encoder_images": 0, **short_spread(before)})
    for step in records[0].miou_by_step[head]:
        values = [r.miou_by_step[head][step] for r in records if step in r.miou_by_step[head]]
        warmup = min(step, cell.run.config.train.warmup_steps or 0)
        images = cost_of(cell.run.config, step, warmup).total
        points.append({"step": step, "encoder_images": images, **short_spread(values)})
    return points


def differences(
    study: Study, groups: Mapping[tuple[str, str, str], Sequence[Cell]], records: Mapping[str, Record]
) -> list[dict[str, Any]]:
    """Paired differences of the methods' figures over common seeds: the later method minus the earlier."""
    order = [method.name for method in study.methods]
    by_seed = {
        key: {c.run.seed: records[c.run.name].measured.miou[c.run.method.head] for c in cells}
        for key, cells in groups.items()
    }
    found = []
    for (budget, labels, minus), figures in by_seed.items():
        for name in order[order.index(minus) + 1 :]:
            later = by_seed.get((budget, labels, name), {})
            common = {seed: later[seed] - figures[seed] for seed in later if seed in figures}
            if common:
                found.append(
                    {"budget": budget, "labels": labels, "of": name, "minus": minus, **spread(common)}
                )
    return found


# lines that the palette of the plots can tell apart
MOST_LINES = 7


def drawn(summary: dict[str, Any]) -> list[str]:
    """Names of the pictures that a summary has figures for.

    ``labels`` where there are two label counts, ``steps`` where the methods fit the palette, else
    ``differences``.
    """
    few = len(summary["methods"]) <= MOST_LINES
    names = ["labels"] if few and len({cell["labels"] for cell in summary["cells"]}) > 1 else []
    if few:
        return [*names, "steps"]
    return ["differences"] if summary["differences"] and summary["baseline"] else []


def cells_by_method(summary: Mapping[str, Any], budget: str, labels: str) -> dict[str, dict[str, Any]]:
    """Cells of a budget and label count by method."""
    return {c["method"]: c for c in summary["cells"] if (c["budget"], c["labels"]) == (budget, labels)}


def main_labels(summary: Mapping[str, Any]) -> str:
    """The label count with the most runs."""
    count: dict[str, int] = {}
    for cell in summary["cells"]:
        count[cell["labels"]] = count.get(cell["labels"], 0) + len(cell["seeds"])
    return max(count, key=lambda name: count[name])


def opposite(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A difference seen from the other side."""
    return {**figure, "mean": -figure["mean"]}


def against(summary: Mapping[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Each difference that the baseline is part of, the other method, and that method minus the baseline."""
    baseline = summary["baseline"]
    found = []
    for item in summary["differences"]:
        if item["minus"] == baseline:
            found.append((item, item["of"], item))
        elif item["of"] == baseline:
            found.append((item, item["minus"], opposite(item)))
    return found
