"""Fits novelty to a checkpoint on the disk: what the command and ``protoseg.novelty`` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from protoseg.checkpoint import NoveltyInfo, load_checkpoint, save_novelty
from protoseg.config.data import DataConfig
from protoseg.data.sources import Source, open_source
from protoseg.errors import UserError
from protoseg.evaluate.measure import override_data
from protoseg.inference import usable_device
from protoseg.manifest import ClassInfo
from protoseg.models.novelty import NoveltyHead, NoveltyScale
from protoseg.novelty.fit import Pair, fit_prototypes, fit_scale, labelled_features

FALSE_ALARMS = 0.05
"""Share of validation pixels that may be called novel, unless asked otherwise."""
UNSCALED = NoveltyScale((0.0, 1.0), (0.0, 1.0), 0.0)
_SHOWN_CLASSES = 5


@dataclass(frozen=True, repr=False)
class FittedNovelty:
    """Novelty that was fitted to a checkpoint and written beside its weights."""

    path: Path
    """The file, ``novelty.safetensors``."""
    info: NoveltyInfo
    """What it was fitted to."""
    false_alarms: dict[str, float]
    """Share of validation pixels called novel, in [0, 1], by class; classes without pixels are left out."""
    unseen: list[str]
    """Classes of which no labelled pixel was seen: they will be called novel."""

    def __repr__(self) -> str:
        return f"<Novelty in {self}>"

    def __str__(self) -> str:
        order = sorted(self.false_alarms, key=lambda name: -self.false_alarms[name])[:_SHOWN_CLASSES]
        shares = ", ".join(f"{name} {self.false_alarms[name]:.1%}" for name in order)
        share = f"{self.info.false_alarms:.1%} of validation pixels"
        return f"{self.path}: {share} are above the threshold; most in {shares}"

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        return [
            f"note: no labelled pixel of {name} was seen, so that it will be called novel; name a list that "
            "shows it, and the others, with --labeled LIST"
            for name in self.unseen
        ]


def open_lists(
    data: DataConfig, classes: list[ClassInfo], labeled: Path | None, val: Path | None
) -> tuple[Source, Source]:
    """Labelled and validation images, from the run's lists or others.

    Raises:
        UserError: If a list or file is missing, or empty.
    """
    given = {"labeled": labeled, "val": val}
    # a list that was named is relative to here, those of the run to their data
    paths = {key: str(path.absolute()) for key, path in given.items() if path is not None}
    if paths and data.kind != "files":
        raise UserError("this checkpoint was trained on the embedded scenes: leave --labeled and --val out")
    data = data.model_copy(update=paths)
    found = open_source(data, "labeled", classes), open_source(data, "val", classes)
    for name, source in zip(given, found, strict=True):
        if len(source) == 0:
            raise UserError(f"the list of --{name} has no image")
    return found


def pairs(source: Source, what: str) -> Iterator[Pair]:
    """Images and masks behind a bar."""
    pause = 0.1 if sys.stderr.isatty() else 10.0
    for number in tqdm(range(len(source)), desc=what, unit="image", leave=False, mininterval=pause):
        yield source.image(number), source.mask(number)


def fit_checkpoint(
    path: str | os.PathLike[str],
    *,
    labeled: Path | None = None,
    val: Path | None = None,
    false_alarms: float = FALSE_ALARMS,
    device: str | None = None,
    data: Sequence[str] = (),
) -> FittedNovelty:
    """Fit and write.

    Args:
        path: Run folder, checkpoint folder, or a file in it.
        labeled: List of labelled images; None takes those of the training.
        val: List of other labelled images; None takes the validation images.
        false_alarms: Share of the validation pixels above the threshold, in (0, 1).
        device: ``cpu``, ``cuda``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, ``key.sub=value``.

    Raises:
        UserError: If the encoder is a vision transformer, or images are missing or cannot be used.
    """
    checkpoint = load_checkpoint(Path(path))
    info, segmenter = checkpoint.info, checkpoint.segmenter
    if info.model.architecture == "dpt":
        raise UserError("novelty needs a convolutional encoder; this checkpoint has a vision transformer")
    known, others = open_lists(override_data(info.data, data), info.classes, labeled, val)
    segmenter.to(usable_device(device) if device else PartialState().device)
    rng, resize = np.random.default_rng(0), info.input.resize
    features = labelled_features(segmenter, pairs(known, "labelled"), resize, rng)
    prototypes = fit_prototypes(features, info.prototypes.num_prototypes, rng)
    head = NoveltyHead(prototypes, UNSCALED).to(segmenter.bank.prototypes.device)
    fitted = fit_scale(segmenter, head, pairs(others, "val"), resize, false_alarms, rng)
    about = NoveltyInfo(
        weights_sha256=info.weights_sha256, labeled_images=len(known), val_images=len(others),
        data_hashes={"labeled": known.sha256, "val": others.sha256}, false_alarms=false_alarms,
        scale=fitted.head.scale,
    )  # fmt: skip
    names = [item.name for item in info.classes]
    return FittedNovelty(
        save_novelty(checkpoint.path, fitted.head, about), about,
        {names[label]: share for label, share in fitted.false_alarms.items()},
        [name for label, name in enumerate(names) if label not in features],
    )  # fmt: skip
