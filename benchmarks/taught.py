r"""A taught student beside its teacher: mIoU of the study's records, latency of the exported networks.

    python -m benchmarks.accuracy voc_teacher --jobs 1      # trains them
    python -m benchmarks.taught voc_teacher                 # exports, measures, prints, writes the result

A method's network (that of its first seed: they are alike) is exported once, with parity, beside its run,
and takes turns with the others in ONNX Runtime on one thread, labels alone in the graph, each at the working
size of the first validation image.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy.records import Places, Record
from benchmarks.accuracy.runs import Cell, plan
from benchmarks.accuracy.study import Study, StudyError, load_study
from benchmarks.accuracy.summary import find_records
from benchmarks.common import RESULTS, ROOT, Answer, markdown_table, middle, parser, write_result
from protoseg.errors import guarded

GOAL_MIOU, GOAL_LATENCY = 0.97, 1 / 3
CLOCK = "cpu_ms"
"""Processor time of one thread: what other work on the machine changes least."""


def mean_miou(records: list[Record], head: str) -> list[float]:
    """Figures of a method's records, in [0, 1]; of ``final_val`` where it was measured."""
    return [record.measured.miou[head] for record in records]


def exported(run: Path, head: str) -> Path:
    """The bundle of a run, made if there is none.

    Raises:
        StudyError: If it cannot be exported.
    """
    bundle = run / f"bundle_{head}"
    if not (bundle / "manifest.json").is_file():
        command = [sys.executable, "-m", "export.onnx", str(run), "-o", str(bundle), "--head", head]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise StudyError(f"{run} cannot be exported:\n{done.stderr.strip()[-2000:]}")
    return bundle


def working_size(run: Path) -> tuple[int, int]:
    """Height and width of a run's first validation image as its network sees it."""
    from protoseg.checkpoint import read_info, resolve_checkpoint
    from protoseg.data.sources import open_source

    info = read_info(resolve_checkpoint(run))
    height, width = open_source(info.data, "val", info.classes).image(0).shape[:2]
    return info.input.resize.target_size(height, width)


def measure(runs: dict[str, tuple[Path, str]], rounds: int) -> dict[str, Any]:
    """Latency of each method's network, in turns: ``wall_ms`` and ``cpu_ms``, with its input size."""
    import numpy as np

    from benchmarks.export_latency import batch_of, take_turns
    from export.runtime import load_runner
    from protoseg.manifest import read_manifest

    calls, sizes = {}, {}
    for method, (run, head) in runs.items():
        bundle, size = exported(run, head), working_size(run)
        runner = load_runner(bundle, "model.labels.onnx", "cpu", intra_threads=1)
        image = batch_of(bundle, read_manifest(bundle), (1, *size))
        calls[method] = lambda _, runner=runner, image=image: runner(image)
        sizes[method] = list(size)
    times = take_turns(calls, np.zeros(0, np.uint8), rounds, title="latency of")
    return {method: {"size": sizes[method], **times[method]} for method in runs}


def table(result: dict[str, Any]) -> str:
    """Accuracy and latency of each method, and both relative to the teacher of taught ones."""
    rows = []
    for method in result["methods"]:
        latency = method["latency"][CLOCK]
        kept = "-" if method["kept"] is None else f"{100 * method['kept']:.1f} %"
        share = "-" if method["share"] is None else f"{method['share']:.2f}"
        spread = f" ± {method['spread']:.1f}" if method["spread"] is not None else ""
        size = "x".join(map(str, method["latency"]["size"]))
        rows.append([method["label"], size, f"{method['miou']:.1f}{spread}", kept, middle(latency, 1), share])
    head = ["network", "input", "mIoU, %", "of its teacher's", "CPU ms", "of its teacher's"]
    return markdown_table(head, rows)


def compare(
    study: Study, cells: list[Cell], records: dict[str, Record], latency: dict[str, Any]
) -> list[Any]:
    """What ``table`` shows, a method each; those without a record are left out."""
    found: dict[str, Any] = {}
    for method in study.methods:
        own = [records[cell.run.name] for cell in cells
               if cell.run.method.name == method.name and cell.run.name in records]  # fmt: skip
        if not own or method.name not in latency:
            continue
        values = [100 * value for value in mean_miou(own, method.head)]
        teacher = found.get(method.teacher or "")
        miou, took = statistics.mean(values), latency[method.name][CLOCK]["median"]
        found[method.name] = {
            "method": method.name, "label": method.label, "miou": miou, "seeds": len(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None, "latency": latency[method.name],
            "kept": None if teacher is None else miou / teacher["miou"],
            "share": None if teacher is None else took / teacher["latency"][CLOCK]["median"],
        }  # fmt: skip
    return list(found.values())


def verdict(methods: list[Any]) -> str:
    """Whether the goal was reached, in a sentence for each taught network."""
    lines = []
    for item in methods:
        if item["kept"] is not None:
            reached = item["kept"] >= GOAL_MIOU and item["share"] <= GOAL_LATENCY
            lines.append(
                f"{item['label']}: {100 * item['kept']:.1f} % of its teacher's mIoU at {item['share']:.2f} "
                f"of its latency; the goal of {100 * GOAL_MIOU:.0f} % at a third is "
                f"{'reached' if reached else 'missed'}"
            )
    return "\n".join(lines)


COMMAND = "python -m benchmarks.taught voc_teacher"
ANSWERS = {
    "taught_voc_teacher": Answer("a small network taught by a large one: mIoU and latency on VOC", COMMAND),
}


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/taught_STUDY.json``; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.taught")
    add = command.add_argument
    add("study", help="study file, or its name")
    add("--rounds", type=int, default=30, help="calls of each network (30)")
    add("--runs", type=Path, default=ROOT / "runs" / "accuracy", help="where run folders are")
    add("--results", type=Path, default=RESULTS, help="where records are, and where the result goes")
    args = command.parse_args(argv)

    def body() -> int:
        study = load_study(args.study)
        places = Places(args.runs.absolute() / study.name, args.results.absolute() / "accuracy" / study.name)
        cells = plan(study)
        records = find_records(cells, places).records
        folders = {}
        for cell in cells:
            name, folder = cell.run.method.name, places.runs / cell.run.name
            if cell.run.name in records and (folder / "checkpoint").is_dir():
                folders.setdefault(name, (folder, cell.run.method.head))
        if not folders:
            raise StudyError(f"no finished run of {study.name} in {places.runs}; train with: "
                             f"python -m benchmarks.accuracy {args.study}")  # fmt: skip
        methods = compare(study, cells, records, measure(folders, args.rounds))
        result = {"study": study.name, "threads": 1, "methods": methods}
        print(table(result), verdict(methods), sep="\n\n")
        print(write_result(f"taught_{study.name}", result, args.results))
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
