"""Trainings of a study: each a run of its own, which is not run again once it is finished."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.records import folder_hash
from benchmarks.accuracy.settings import config_hash
from benchmarks.common import ROOT
from benchmarks.suggest_study.figures import figures, rare_classes
from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.data.classes import read_classes
from protoseg.data.lines import Entry
from protoseg.data.lists import read_entries
from protoseg.data.sources import open_source
from protoseg.errors import CheckpointError, DataError, UserError
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
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise UserError(f"exit code {code} of {' '.join(command)}; run this again to go on")
    return target


def collect(target: Path, chosen: int, rare: Sequence[int] | None) -> dict[str, Any]:
    """Figures of a finished run, by head, and of the images that were chosen.

    Args:
        target: The run folder.
        chosen: How many of its labelled images were, the last ones of the list.
        rare: Rare classes; None takes those of its own labels.
    """
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info

    info, config = read_info(target / CHECKPOINT_DIR), load_config(target / "config.yaml")
    classes = read_classes(config.data)
    source = open_source(config.data, "labeled", classes)
    pixels = np.stack([
        np.bincount(source.mask(i).ravel(), minlength=256)[: len(classes)] for i in range(len(source))
    ])  # fmt: skip
    rare = rare_classes(pixels.sum(0)) if rare is None else rare
    iou = info.metrics["val"]["per_class"]
    return {
        "steps": info.step,
        "seed": config.train.seed,
        "miou": info.metrics["val"]["miou"],
        "iou": iou,
        "rare_classes": list(rare),
        **figures([iou["linear"].get(item.name) or 0.0 for item in classes], pixels[-chosen:], rare),
        "data_hashes": info.data_hashes,
        "git_revision": info.git_revision,
    }


def labelled_entries(config: Config, listed: str) -> dict[str, Entry]:
    """Entries of a list of images and masks by the image's path, in its order.

    Raises:
        DataError: If the list or one of its files is missing.
    """
    found = read_entries(config.data.model_copy(update={"labeled": listed}), "labeled").entries
    return {str(Path(str(entry.image)).resolve()): entry for entry in found}


def write_lists(folder: Path, everything: dict[str, Entry], labeled: list[str]) -> list[str]:
    """Write the lists of a training: those that get labels, and all others as unlabelled.

    Args:
        folder: Where ``labeled.txt`` and ``unlabeled.txt`` go.
        everything: All entries by the image's path.
        labeled: Paths of those that are labelled.

    Returns:
        Overrides that name them.

    Raises:
        DataError: If an image has no mask.
    """
    if unknown := [path for path in labeled if path not in everything]:
        raise DataError(f"{unknown[0]} is to be labelled, but the full list has no mask of it")
    folder.mkdir(parents=True, exist_ok=True)
    lines = {path: f"{entry.image}\t{entry.mask}\n" for path, entry in everything.items()}
    taken = set(labeled)
    write_text_whole(folder / "labeled.txt", "".join(lines[path] for path in labeled))
    write_text_whole(
        folder / "unlabeled.txt", "".join(f"{e.image}\n" for p, e in everything.items() if p not in taken)
    )
    return [f"data.{name}={folder / name}.txt" for name in ("labeled", "unlabeled")]
