"""What a run says while it trains, to ``metrics.jsonl``, the terminal and trackers."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protoseg.evaluate.results import EvalResult, format_table
from protoseg.files import write_text_whole
from protoseg.method.step import StepResult
from protoseg.models.prototypes import PrototypeBank
from protoseg.processes import Processes
from protoseg.train.data import Batches
from protoseg.train.monitor import Monitor
from protoseg.train.terminal import Terminal, in_words, plain
from protoseg.train.trackers import Trackers

STEP = "step"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl`` in file order; a last line cut short by a crash is left out.

    Raises:
        ValueError: If a line before the last is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); delete that line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; delete that line")
        records.append(record)
    return records


class MetricsLog:
    """Appends one JSON object a line to a file; every line is flushed whole.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; NaN becomes null.

        Raises:
            ValueError: If the record has no integer ``step``.
        """
        if not isinstance(record.get(STEP), int):
            raise ValueError(f"a record needs an integer {STEP!r}, got {record.get(STEP)!r}")
        line = json.dumps(plain(record), allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def truncate_after(self, step: int) -> None:
        """Drop records later than ``step`` (and a torn last line), so that a resumed run repeats none."""
        kept = [record for record in read_metrics(self.path) if record.get(STEP, 0) <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_text_whole(self.path, text)


class Interval:
    """Sums since the last log line, on the device."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[Tensor, int]] = {}
        self.counts: dict[str, Tensor] = {}
        self.began = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Add one micro-step."""
        for key, value in result.parts.items():
            total, number = self.parts.get(key, (torch.zeros_like(value), 0))
            self.parts[key] = total + value, number + 1
        for key, value in result.counts.items():
            self.counts[key] = self.counts.get(key, torch.zeros_like(value)) + value

    def summary(self, processes: Processes) -> dict[str, Any]:
        """Means and shares over the interval and all processes; waits for the device."""
        keys = sorted(self.parts)
        means = torch.stack([self.parts[key][0] / self.parts[key][1] for key in keys])
        values = (processes.reduce(means) / processes.world).tolist()
        record: dict[str, Any] = dict(zip(keys, values, strict=True))
        if self.counts:
            total = {key: processes.reduce(value) for key, value in sorted(self.counts.items())}
            believed = max(float(total["believed"]), 1.0)
            record["pseudo_label/rate"] = float(total["believed"]) / max(float(total["valid"]), 1.0)
            record["pseudo_label/class_share"] = (total["per_class"] / believed).tolist()
            # the share of pseudo-labels that the student contradicts; readers of the log know it by this name
            record["teacher_student/disagreement"] = float(total["contradicted"]) / believed
        return record


class RunLog:
    """Says how a run goes. Every process takes part in the sums; the first one writes and shows them.

    Args:
        folder: The run folder.
        trackers: Get the numbers, too.
        processes: Who shares the run.
        monitor: Finds what to warn of.
        terminal: Shows it.
        step: Optimiser steps done; later records of the log are dropped.
        eval_every: Steps between evaluations, which take time, too.
    """

    def __init__(
        self, folder: Path, trackers: Trackers, processes: Processes, monitor: Monitor, terminal: Terminal, *,
        step: int, eval_every: int,
    ) -> None:  # fmt: skip
        self.trackers, self.processes, self.monitor = trackers, processes, monitor
        self.file = MetricsLog(folder / "metrics.jsonl") if processes.rank == 0 else None
        if self.file is not None:
            self.file.truncate_after(step)
        self.terminal, self.step, self.eval_every = terminal, step, eval_every
        self.pauses: list[float] = []
        self.interval = Interval()

    def log_interval(self, step: int, batches: Batches, bank: PrototypeBank | None, **numbers: float) -> None:
        """Log what happened since the last log line, and begin anew.

        Args:
            step: Optimiser steps done.
            batches: Tells how many images there were, and how long they were waited for.
            bank: Prototypes in use, or None.
            numbers: More for the record; ``lr`` is the first group's (the encoder, unless it is frozen).
        """
        elapsed = max(time.perf_counter() - self.interval.began, 1e-9)
        record = {STEP: step, **self.interval.summary(self.processes), **numbers}
        record["time/images_per_s"] = batches.images * self.processes.world / elapsed
        record["time/data_wait"] = batches.waited / elapsed
        if self.processes.device.type == "cuda":
            record["time/memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if bank is not None:
            record["prototype/usage_entropy"] = bank.usage_entropy().tolist()
            record["prototype/closest_pair"] = bank.closest_pair().tolist()
            record["prototype/active"] = [bool(v) for v in bank.active.tolist()]
        self._write(record)
        left = self._seconds_left(step, elapsed / max(step - self.step, 1))
        rate = record.get("pseudo_label/rate")
        self.terminal.progress(
            step,
            f"loss {record['loss/total']:.3f}" + ("" if rate is None else f", labels {rate:.0%}")
            + f", lr {record['lr']:.2g}, {record['time/images_per_s']:.1f} img/s"
            + f", data {record['time/data_wait']:.0%}, {in_words(left)}",
        )  # fmt: skip
        self.terminal.event("log", **record, seconds_left=left)
        self.interval, self.step = Interval(), step
        batches.images, batches.waited = 0, 0.0

    def _seconds_left(self, step: int, per_step: float) -> float:
        """Time until the last step if all go on as those of the last interval, with the evaluations."""
        steps = self.terminal.max_steps
        evaluations = math.ceil(steps / self.eval_every) - step // self.eval_every
        each = sum(self.pauses) / max(len(self.pauses), 1)
        return per_step * (steps - step) + each * evaluations

    def log_evaluation(self, step: int, result: EvalResult, *, unlabeled: bool) -> None:
        """Log validation mIoU, and IoU by class, of each head, in [0, 1]."""
        miou, names = result.miou, self.monitor.class_names
        record: dict[str, Any] = {STEP: step, **{f"val/miou_{head}": value for head, value in miou.items()}}
        record |= {f"val/iou_{head}": values for head, values in result.per_class.items()}
        self._write(record, unlabeled=unlabeled)
        self.trackers.log(
            {
                f"val/iou_{head}/{name}": value
                for head, values in result.per_class.items()
                for name, value in zip(names, values, strict=True)
            },
            step,
        )
        self.terminal.say(f"step {step}: val mIoU " + ", ".join(f"{k} {v:.2%}" for k, v in miou.items()))
        if step < self.terminal.max_steps:  # the last one's table is among the last lines
            self.terminal.say(format_table(result, names))
        iou = {head: dict(zip(names, values, strict=True)) for head, values in result.per_class.items()}
        self.terminal.event("evaluation", step=step, miou=miou, iou=iou)

    def _write(self, record: dict[str, Any], *, unlabeled: bool = False) -> None:
        if self.file is not None:
            self.file.append(record)
            for warning in self.monitor.update(record, unlabeled=unlabeled):
                self.terminal.say(f"warning: step {record[STEP]}: {warning}", logging.WARNING)
        scalars = {key: value for key, value in record.items() if isinstance(value, float)}
        self.trackers.log(scalars, record[STEP])

    def close(self, best: Path | None = None) -> None:
        """End the bar and the trackers; ``best`` is the best checkpoint of a run that has finished."""
        self.terminal.close()
        self.trackers.close(best)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        began = time.perf_counter()
        yield
        self.pauses.append(time.perf_counter() - began)
        self.interval.began += self.pauses[-1]
