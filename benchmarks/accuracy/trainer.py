"""The commands that a study's runs are trained and measured by, and what their logs say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.accuracy.records import FINAL_NAME
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.study import Study
from benchmarks.common import ROOT


def trainer_command(study: Study, run: Run, runs: Path, *, resume: bool) -> list[str]:
    """The command line of a training, from the project's root."""
    flag = ["--resume"] if resume else []
    own = [f"run.dir={short(runs)}", f"run.name={run.name}", "train.trackers=[]", "train.keep_states=1",
           f"train.save_every={max(1, run.steps // 12)}"]  # fmt: skip
    if run.start is not None:
        own.append(f"train.start_from={short(runs / run.start.name)}")
    if run.teacher is not None:
        own.append(f"pseudo_labels.teacher={short(runs / run.teacher.name)}")
    return ["python", "-m", "protoseg.train", *flag, "--config", study.config, *own, *run.overrides]


def measure_final(folder: Path, val: str, log: Path) -> int:
    """Measure a finished run on ``val`` (below ``data.root``); returns the exit code."""
    command = [
        sys.executable, "-m", "protoseg.evaluate", str(folder), "--teacher-only", "--no-boundary",
        "--json", str(folder / FINAL_NAME), "--confusion", str(folder / "final_val.png"),
        "--data", f"val={val}",
    ]  # fmt: skip
    with log.open("ab") as stream:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=stream, start_new_session=True, check=False,
        )  # fmt: skip
    return done.returncode


def short(path: Path) -> str:
    """A path relative to the project where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tail(log: Path) -> str:
    """The last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in text[-5:])


def last_step(folder: Path) -> int:
    """The last step that a run has logged."""
    from protoseg.train.log import read_metrics

    try:
        return max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
    except (ValueError, KeyError):
        return 0
