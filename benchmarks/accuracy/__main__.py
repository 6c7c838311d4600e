r"""Train a matrix of methods x label counts x seeds, and sum it up.

    python -m benchmarks.accuracy benchmarks/studies/camvid.yaml --dry-run    # what would run, and its cost
    python -m benchmarks.accuracy benchmarks/studies/camvid.yaml --jobs 2     # train what is missing
    python -m benchmarks.accuracy benchmarks/studies/camvid.yaml --report     # summary and plots

Each finished training writes ``benchmarks/results/accuracy/STUDY/RUN.json`` and is not run again; a stopped
one goes on. Records of several machines are merged by copying the files together. Several runners may work
on one study side by side.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from pathlib import Path

from benchmarks.accuracy.records import Places
from benchmarks.accuracy.runner import Runner
from benchmarks.accuracy.runs import Run, plan, unique_runs, with_starts
from benchmarks.accuracy.study import Study, StudyError, load_study
from benchmarks.accuracy.summary import Found, find_records, summarize
from benchmarks.accuracy.trainer import short
from benchmarks.common import ASSETS, RESULTS, ROOT, parser, write_result
from protoseg.errors import guarded

COLUMNS = f"{'run':<44} {'steps':>6} {'student':>8} {'teacher':>8}  state"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    command = parser(__doc__, prog="python -m benchmarks.accuracy")
    add = command.add_argument
    add("study", metavar="STUDY.yaml", help="study file, or the name of one in benchmarks/studies")
    add("--only", nargs="+", metavar="PATTERN", help="runs whose name matches, as 'protoseg_*' '*_seed0_*'")
    add("--dry-run", action="store_true", help="list what would run with its cost, and stop")
    add("--redo", action="store_true", help="train again where a record was made with other settings")
    add("--jobs", type=int, default=1, metavar="N", help="trainings side by side, one thread each (1)")
    add("--report", action="store_true", help="write summary and plots of what is finished, and stop")
    add("--runs", type=Path, default=ROOT / "runs" / "accuracy", help="where run folders, logs and locks go")
    add("--results", type=Path, default=RESULTS, help="where records and the summary go")
    add("--assets", type=Path, default=ASSETS, help="where plots go")
    arguments = command.parse_args(argv)
    if arguments.jobs < 1:
        command.error(f"--jobs must be at least 1, got {arguments.jobs}")
    return arguments


def report(study: Study, found: Found, arguments: argparse.Namespace) -> int:
    """Write the summary and the plots of the records that exist."""
    from benchmarks.accuracy.plots import draw

    for name in found.missing:
        print(f"missing: {name}")
    for name in found.other_settings:
        print(f"not used, made with other settings: {name}")
    if not found.records:
        raise StudyError(f"study {study.name} has no finished run yet; train with the same command "
                         "without --report")  # fmt: skip
    data = summarize(study, plan(study), found)
    last = max(found.records.values(), key=lambda record: record.date)
    told = {
        "command": f"python -m benchmarks.accuracy benchmarks/studies/{study.name}.yaml --report",
        "date": last.date,
        "machine": data["machines"][0],
        "versions": last.versions,
    }
    path = write_result(f"accuracy_{study.name}", {**told, **data}, arguments.results)
    print(short(path))
    for picture in draw(data, arguments.assets):
        print(short(picture))
    count = len(found.records)
    print(f"{count} of {count + len(found.missing) + len(found.other_settings)} runs")
    return 0


def list_runs(runs: list[Run], wanted: list[Run], runner: Runner) -> None:
    """Print every run with its cost."""
    print(COLUMNS)
    names = {run.name for run in wanted}
    for run in runs:
        state = "to train" if run.name in names else "finished"
        print(f"{run.name:<44} {run.steps:>6} {run.cost.student:>8} {run.cost.teacher:>8}  {state}")
    images = sum(run.cost.total for run in wanted)
    seconds = runner.seconds_for(images)
    guess = "no finished run tells how long yet" if seconds is None else f"about {seconds / 3600:.1f} h"
    print(f"{len(wanted)} of {len(runs)} to train, {images} encoder images, {guess}")


def run(arguments: argparse.Namespace) -> int:
    """List, report or train; returns the exit code."""
    study = load_study(arguments.study)
    places = Places(
        arguments.runs.absolute() / study.name, arguments.results.absolute() / "accuracy" / study.name
    )
    cells = plan(study)
    if arguments.report:
        return report(study, find_records(cells, places), arguments)
    runs = unique_runs(cells)
    if arguments.only:
        runs = [r for r in runs if any(fnmatch.fnmatchcase(r.name, p) for p in arguments.only)]
        if not runs:
            names = ", ".join(run.name for run in unique_runs(cells)[:5])
            raise StudyError(f"--only {' '.join(arguments.only)} matches no run; there are {names}, ...")
        runs = with_starts(runs)
    runner = Runner(study, places, jobs=arguments.jobs, redo=arguments.redo)
    wanted = runner.wanted(runs)
    if arguments.dry_run:
        list_runs(runs, wanted, runner)
        return 0
    if not wanted:
        print(f"all {len(runs)} runs are finished; sum them up with --report")
        return 0
    return runner.train(wanted)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
