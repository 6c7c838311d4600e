r"""Are suggested images worth more than random ones? CamVid, 23 labels and 23 more.

    python -m benchmarks.suggest_study --config configs/camvid_23_efficientnet_lite0.yaml

For each seed: train with the seed's 23 labelled images; let ``protoseg.suggest`` choose 23 of its unlabelled
images; take their masks from the full training list; train again from the start, with the same seed and as
many steps, on 23 + 23 suggested and on 23 + 23 random images. What is chosen leaves the unlabelled list.

Each training is a run of its own below ``--dir``: finished ones are not run again, stopped ones go on, and
suggestions are kept as long as they are of the checkpoint that is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.records import folder_hash, miou_by_step
from benchmarks.accuracy.settings import config_hash
from benchmarks.common import (
    RESULTS,
    ROOT,
    TRAINING,
    Answer,
    Block,
    Result,
    markdown_table,
    parser,
    signed,
    write_result,
)
from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.data.lists import data_root, find_file, read_entries
from protoseg.errors import CheckpointError, DataError, UserError, guarded
from protoseg.files import write_text_whole


def finished(target: Path, wanted: Config) -> bool:
    """Whether a run folder holds the training that is wanted, done to its last step, on the same lists."""
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info

    try:
        info = read_info(target / CHECKPOINT_DIR)
    except CheckpointError:
        return False
    if folder_hash(target) != config_hash(wanted) or info.step != wanted.train.max_steps:
        return False
    hashes = [read_entries(wanted.data, split).sha256 for split in ("labeled", "unlabeled", "val")]
    return hashes == [info.data_hashes.get(split) for split in ("labeled", "unlabeled", "val")]


def run(config: str, folder: Path, name: str, overrides: list[str]) -> Path:
    """Train ``name`` unless it is finished; returns its run folder.

    Raises:
        UserError: If the trainer fails.
    """
    target = folder / name
    if not finished(target, load_config(config, overrides)):
        command = [sys.executable, "-m", "protoseg.train", "--resume", "--config", config]
        command += [f"run.dir={folder}", f"run.name={name}", "train.trackers=[]", *overrides]
        call(command)
    return target


def call(command: list[str]) -> None:
    """Run a command of ours.

    Raises:
        UserError: If it fails.
    """
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise UserError(f"exit code {code} of {' '.join(command)}; run this again to go on")


def collect(target: Path) -> dict[str, Any]:
    """Figures of a finished run, by head."""
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info
    from protoseg.train.log import read_metrics

    info = read_info(target / CHECKPOINT_DIR)
    return {
        "steps": info.step,
        "seed": load_config(target / "config.yaml").train.seed,
        "miou": info.metrics["val"]["miou"],
        "iou": info.metrics["val"]["per_class"],
        "miou_by_step": miou_by_step(read_metrics(target / "metrics.jsonl")),
        "data_hashes": info.data_hashes,
        "git_revision": info.git_revision,
    }


def read_lines(config: Config, name: str) -> list[str]:
    """Lines of a list of the data set.

    Raises:
        DataError: If it is missing.
    """
    path = find_file(data_root(config.data), name, "list")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def masks_by_image(config: Config, train: str) -> dict[str, str]:
    """``image mask`` line of each image of the full list, by the image's path."""
    entries = read_entries(config.data.model_copy(update={"labeled": train}), "labeled").entries
    return {str(entry.image.resolve()): f"{entry.image}\t{entry.mask}" for entry in entries}


def write_lists(
    config: Config, folder: Path, labeled: list[str], unlabeled: list[str], chosen: list[str], train: str
) -> list[str]:
    """Write the lists of a second training.

    Args:
        config: Names the data.
        folder: Where ``labeled.txt`` and ``unlabeled.txt`` go.
        labeled: Lines of the first labelled list.
        unlabeled: Lines of the first unlabelled list.
        chosen: Those of them that get labels.
        train: The full list, with masks.

    Returns:
        Overrides that name them.

    Raises:
        DataError: If a chosen image is not in the unlabelled list or has no mask in the full list.
    """
    root = data_root(config.data)
    masks = masks_by_image(config, train)
    added = []
    for name in chosen:
        line = masks.get(str((root / name).resolve()))
        if line is None or name not in unlabeled:
            raise DataError(f"{name} was chosen, but it is not both in the unlabelled list and in {train}")
        added.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    taken = set(chosen)
    write_text_whole(folder / "labeled.txt", "".join(f"{line}\n" for line in [*labeled, *added]))
    write_text_whole(
        folder / "unlabeled.txt", "".join(f"{line}\n" for line in unlabeled if line not in taken)
    )
    return [f"data.labeled={folder / 'labeled.txt'}", f"data.unlabeled={folder / 'unlabeled.txt'}"]


def suggested(
    target: Path, lists: list[str], config: Config, folder: Path, count: int, extra: list[str]
) -> list[str]:
    """Images that ``protoseg.suggest`` chooses with a run, or chose before with the same weights.

    Args:
        target: Finished run that chooses.
        lists: Labelled and unlabelled list, as the configuration names them.
        config: Names the data.
        folder: Where the suggestions go.
        count: Images to choose.
        extra: Further arguments of ``protoseg.suggest``.
    """
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info
    from protoseg.suggest.__main__ import LIST_NAME, RECORD_NAME

    record = folder / RECORD_NAME
    digest = read_info(target / CHECKPOINT_DIR).weights_sha256
    if not record.is_file() or json.loads(record.read_text())["weights_sha256"] != digest:
        root = data_root(config.data)
        labeled, unlabeled = (find_file(root, name, "list") for name in lists)
        command = [sys.executable, "-m", "protoseg.suggest", target, unlabeled, "-n", count, "-o", folder,
                   "--labeled", labeled, "--root", root, *extra]  # fmt: skip
        call([str(part) for part in command])
    chosen = (folder / LIST_NAME).read_text(encoding="utf-8").splitlines()
    if len(chosen) != count:
        raise DataError(
            f"{len(chosen)} images were suggested, not {count}: the others are near duplicates; give "
            "--suggest=--min-distance=0"
        )
    return chosen


def run_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The three trainings of a seed."""
    names = [text.format(seed=seed) for text in (arguments.labeled, arguments.unlabeled)]
    shared = [f"train.seed={seed}", f"data.labeled={names[0]}", f"data.unlabeled={names[1]}", *arguments.set]
    if arguments.steps is not None:
        shared.append(f"train.max_steps={arguments.steps}")
    config = load_config(arguments.config, shared)
    folder = arguments.dir.absolute()
    labeled, unlabeled = (read_lines(config, name) for name in names)
    first = run(arguments.config, folder, f"seed{seed}_first", shared)
    chosen = {
        "suggested": suggested(
            first, names, config, folder / f"seed{seed}_suggestions", arguments.count, arguments.suggest
        ),
        "random": sorted(
            np.random.default_rng(seed).choice(unlabeled, arguments.count, replace=False).tolist()
        ),
    }
    result: dict[str, Any] = {"first": collect(first)}
    for arm, images in chosen.items():
        lists = write_lists(
            config, folder / f"seed{seed}_{arm}_lists", labeled, unlabeled, images, arguments.train
        )
        target = run(arguments.config, folder, f"seed{seed}_{arm}", [*shared, *lists])
        result[arm] = {**collect(target), "added": images}
    for arm in ("first", *chosen):
        shown = "  ".join(f"{head} {100 * value:.2f}" for head, value in result[arm]["miou"].items())
        print(f"seed {seed}  {arm:<10}{shown}")
    return result


def table(result: Result) -> str:
    """MIoU with suggested and with random images added, by seed."""
    rows = []
    for seed, arms in result["seeds"].items():
        heads = list(arms["first"]["miou"])
        for head in heads:
            before, suggested, random = (
                100 * arms[a]["miou"][head] for a in ("first", "suggested", "random")
            )
            difference = signed(suggested - random)
            rows.append([seed, head, f"{before:.1f}", f"{suggested:.1f}", f"{random:.1f}", difference])
    steps = next(iter(result["seeds"].values()))["first"]["steps"]
    text = (
        f"mIoU on val in % at the last of {steps:,} steps of supervised training, before and after "
        f"{result['count']} more images got labels; one training each.\n\n"
    )
    head = ["seed", "head", "before", "suggested added", "random added", "difference"]
    return text + markdown_table(head, rows)


ANSWERS = {
    "suggest_study": Answer(
        "suggested against random labels, CamVid, 23 + 23",
        "python -m benchmarks.suggest_study --set method.preset=supervised --steps 400",
    )
}
BLOCKS = {"suggest_study": Block(table, ("suggest_study",), TRAINING)}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    add = command.add_argument
    add("--config", default="configs/camvid_23_efficientnet_lite0.yaml",
        help="configuration of all trainings")  # fmt: skip
    add("--labeled", default="splits/23/seed{seed}/labeled.txt", help="labelled list of a seed")
    add("--unlabeled", default="splits/23/seed{seed}/unlabeled.txt",
        help="unlabelled list of a seed, one image a line")  # fmt: skip
    add("--train", default="splits/train.txt", help="full list, with masks of the unlabelled images")
    add("--count", type=int, default=23, help="images to add (default: 23)")
    add("--seeds", nargs="+", type=int, default=[0, 1],
        help="seeds of lists, training and choice (default: 0 1)")  # fmt: skip
    add("--steps", type=int, help="steps of each training (default: the configuration's)")
    add("--set", nargs="+", default=[], metavar="key=value", help="overrides of all trainings")
    add("--suggest", action="append", default=[], metavar="ARG", help="argument of protoseg.suggest, as "
        "--suggest=--score=entropy; repeatable")  # fmt: skip
    add("--dir", type=Path, default=Path("runs/suggest_study"), help="where the runs go")
    add("--name", default="suggest_study", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = command.parse_args(argv)
    return guarded(lambda: run_study(arguments))


def run_study(arguments: argparse.Namespace) -> int:
    """Run all seeds and write the result."""
    seeds = {seed: run_seed(arguments, seed) for seed in arguments.seeds}
    heads = seeds[arguments.seeds[0]]["suggested"]["miou"]
    gains = {
        head: {seed: arms["suggested"]["miou"][head] - arms["random"]["miou"][head]
               for seed, arms in seeds.items()}
        for head in heads
    }  # fmt: skip
    data = {"config": arguments.config, "count": arguments.count, "seeds": seeds,
            "suggested_minus_random": gains}  # fmt: skip
    path = write_result(arguments.name, data, arguments.results)
    for head, values in gains.items():
        print(f"suggested - random, {head:<10}" + "  ".join(f"{100 * v:+.2f}" for v in values.values()))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
