r"""Compare methods on one configuration: same seed, same start, same number of steps.

    python -m benchmarks.methods --config configs/camvid_46_efficientnet_lite0.yaml \
        --methods supervised fixmatch prototype protoseg --name methods_camvid46

Each method is a training of its own below ``--dir``; finished ones are not run again and stopped ones go
on. ``--set NAME:key=value`` adds a variant of a method. One seed gives no spread: the training pictures
give an idea of it, and differences of about 1.5 points mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ROOT, write_result
from protoseg.checkpoint import read_info
from protoseg.config import load_config
from protoseg.report import read_metrics


def run(config: str, folder: Path, name: str, overrides: list[str]) -> Path:
    """Train ``name`` unless it is finished; returns its run folder."""
    target = folder / name
    if not (target / "curves.png").exists() or not finished(target):
        command = [sys.executable, "-m", "protoseg.train", "--resume", "--config", config]
        command += [f"run.dir={folder}", f"run.name={name}", "train.trackers=[]", *overrides]
        subprocess.run(command, cwd=ROOT, check=True)
    return target


def finished(target: Path) -> bool:
    """Whether the run's checkpoint is of its last step."""
    config = load_config(target / "config.yaml")
    return (target / "checkpoint").exists() and read_info(
        target / "checkpoint"
    ).step == config.train.max_steps


def collect(target: Path) -> dict[str, Any]:
    """Figures of a finished run."""
    info = read_info(target / "checkpoint")
    records = read_metrics(target / "metrics.jsonl")
    curve: dict[str, dict[int, float]] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith("val/miou_"):
                curve.setdefault(key.removeprefix("val/miou_"), {})[record["step"]] = value
    config = yaml.safe_load((target / "config.yaml").read_text())
    views = config["views"]["strong_views"] if config["method"]["unlabeled"] else 0
    steps, warmup = info.step, config["train"]["warmup_steps"] or 0
    batch = config["train"]["batch_size"] * config["train"]["accumulate"]
    return {
        "steps": steps,
        "seed": config["train"]["seed"],
        "miou": info.metrics["val"]["miou"],
        "iou": info.metrics["val"].get("per_class"),
        "miou_by_step": curve,
        "student_encoder_images": batch * (steps + views * (steps - warmup)),
        "teacher_encoder_images": batch * (steps - warmup) if views else 0,
        "method": config["method"],
        "prototypes": config["prototypes"],
        "pseudo_labels": config["pseudo_labels"],
        "data_hashes": info.data_hashes,
        "git_revision": info.git_revision,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configuration that all methods share")
    parser.add_argument("--methods", nargs="+", default=["supervised", "fixmatch", "prototype", "protoseg"])
    parser.add_argument("--set", action="append", default=[], metavar="METHOD:key=value", dest="changes",
                        help="override for one method, repeatable")  # fmt: skip
    parser.add_argument("--dir", type=Path, default=Path("runs/methods"), help="where the runs go")
    parser.add_argument("--name", required=True, help="name of the result file")
    arguments = parser.parse_args(argv)
    changes = [item.partition(":")[::2] for item in arguments.changes]
    results = {}
    for method in arguments.methods:
        overrides = [f"method.preset={method}", *(value for name, value in changes if name == method)]
        target = run(arguments.config, arguments.dir, method, overrides)
        results[method] = collect(target)
        print(f"{method:<12}" + "  ".join(f"{k} {100 * v:.2f}" for k, v in results[method]["miou"].items()))
    path = write_result(arguments.name, {"config": arguments.config, "runs": results})
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
