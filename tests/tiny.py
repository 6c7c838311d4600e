"""Small networks and runs that tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from protoseg.checkpoint import CheckpointInfo, save_checkpoint
from protoseg.config.load import parse_config
from protoseg.config.sections import Config
from protoseg.input_rule import InputRule
from protoseg.manifest import ClassInfo
from protoseg.models.segmenter import Segmenter, build_segmenter
from protoseg.versions import package_versions

PROJECT_ROOT = Path(__file__).resolve().parents[1]

# A network and a data set that train in a fraction of a second a step.
TINY = {
    "data": {"synthetic": {"num_labeled": 4, "num_unlabeled": 6, "num_val": 3, "height": 40, "width": 48}},
    "views": {"crop": [32, 32]},
    "model": {"architecture": "deeplabv3plus", "encoder": "test_resnet", "decoder_channels": 32},
    "prototypes": {"num_prototypes": 2, "grid": 8},
    "pseudo_labels": {"threshold": 0.3},
    "train": {
        "max_steps": 6, "warmup_steps": 2, "batch_size": 2, "log_every": 1, "trackers": [],
        "atlas_images": 0,
    },
}  # fmt: skip


def tiny_config(**sections: dict[str, object]) -> Config:
    """The tiny configuration with sections merged over it."""
    raw: dict[str, dict[str, object]] = {key: dict(value) for key, value in TINY.items()}
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return parse_config(raw)


def tiny_segmenter(num_classes: int = 3, seed: int = 0, **model: object) -> Segmenter:
    """A random network with started prototypes, in eval mode."""
    config = tiny_config(model=dict(model))
    torch.manual_seed(seed)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=num_classes)
    generator = torch.Generator().manual_seed(seed)
    dim, count = segmenter.network.feature_dim, config.prototypes.num_prototypes
    segmenter.bank.start({c: torch.randn(count, dim, generator=generator) for c in range(num_classes)})
    return segmenter.eval()


def tiny_info(num_classes: int = 3, **model: object) -> CheckpointInfo:
    """A description that fits ``tiny_segmenter``."""
    config = tiny_config(model=dict(model))
    return CheckpointInfo(
        name="tiny",
        step=1,
        model=config.model,
        prototypes=config.prototypes,
        classes=[ClassInfo(name=f"class{i}", color=(40 * i, 10, 200 - 40 * i)) for i in range(num_classes)],
        ignore_index=255,
        input=InputRule(
            channels=3,
            mean=[0.5] * 3,
            std=[0.5] * 3,
            stride_multiple=32,
            resize=config.data.resize,
            crop=(32, 32),
        ),
        data=config.data,
        eval=config.eval,
        data_hashes={},
        metrics={},
        method="protoseg",
        weights_sha256="",
        versions=package_versions(),
        git_revision=None,
    )


def tiny_run(folder: Path, num_classes: int = 3, **made: Any) -> Path:
    """A run folder with the checkpoint of a ``tiny_segmenter`` (``made``: its options)."""
    save_checkpoint(folder / "checkpoint", tiny_segmenter(num_classes, **made), tiny_info(num_classes))
    return folder


def photo(seed: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """Coarse coloured patches, (H, W, 3): pictures that differ in more than noise."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


def quiet_environment() -> dict[str, str]:
    """Environment for subprocesses: one thread, no launcher settings of an outer run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PROTOSEG_"))}
    paths = [str(PROJECT_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def short_quickstart() -> dict[str, dict[str, Any]]:
    """Settings of a shorter training than the real one, under its name."""
    raw = {key: dict(value) for key, value in TINY.items()} | {"run": {"name": "quickstart"}}
    raw["data"] = {"synthetic": {"num_labeled": 12, "num_unlabeled": 12, "num_val": 8}}
    raw["optim"] = {"lr": 3e-3, "decoder_lr_factor": 1}
    raw["train"] |= {"max_steps": 60, "warmup_steps": 30, "batch_size": 4, "log_every": 20}
    raw["views"] = {"crop": [64, 64]}
    return raw
