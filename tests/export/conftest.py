"""One tiny trained network, exported once for the whole session by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from protoseg.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint, save_checkpoint
from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.data.synthetic import SyntheticScenes, synthetic_classes
from protoseg.files import PROJECT_ROOT
from protoseg.input_rule import InputRule
from protoseg.models.kmeans import spherical_kmeans
from protoseg.models.segmenter import Segmenter, build_segmenter
from protoseg.versions import package_versions

TINY = (
    "model.encoder=test_efficientnet", "model.decoder_channels=16", "data.synthetic.height=64",
    "data.synthetic.width=96", "data.synthetic.modes=1", "data.synthetic.num_classes=4",
    "data.synthetic.num_labeled=24", "data.synthetic.num_unlabeled=12", "data.synthetic.num_val=6",
    "views.crop=[64,96]", "prototypes.num_prototypes=2", "prototypes.projection=mlp",
    "prototypes.projection_dim=16", "model.feature=decoder",
)  # fmt: skip


@dataclass
class Completed:
    """Result of a command."""

    code: int
    out: str
    err: str


def run_command(*arguments: str | Path, env: dict[str, str] | None = None) -> Completed:
    """Run ``python -m ARGUMENTS`` in the project root."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=PROJECT_ROOT, capture_output=True, text=True,
        timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip
    return Completed(done.returncode, done.stdout, done.stderr)


def train_tiny(config: Config, steps: int) -> Segmenter:
    """A network that names several classes on the embedded data."""
    torch.manual_seed(0)
    scenes = SyntheticScenes(config.data.synthetic, "labeled")
    images = torch.from_numpy(np.stack([scenes.image(i) for i in range(len(scenes))])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([scenes.mask(i) for i in range(len(scenes))])).long()
    classes = config.data.synthetic.num_classes
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=classes)
    network = segmenter.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        index = torch.randint(0, len(scenes), (8,))
        output = network(images[index])
        logits = network.upsample(output.linear_logits, *masks.shape[1:])
        loss = F.cross_entropy(logits, masks[index], ignore_index=255, weight=torch.tensor([1.0, 3, 3, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    segmenter.eval()
    with torch.no_grad():
        features = network(images).features.permute(0, 2, 3, 1)
        small = F.interpolate(masks[:, None].float(), size=features.shape[1:3])[:, 0].long()
        generator = torch.Generator().manual_seed(0)
        count = config.prototypes.num_prototypes
        segmenter.bank.start(
            {c: spherical_kmeans(features[small == c][:500], count, generator) for c in range(classes)}
        )
    return segmenter


def save_tiny(folder: Path, config: Config, segmenter: Segmenter) -> Path:
    """Write it as a checkpoint; returns the run folder."""
    network = segmenter.network
    info = CheckpointInfo(
        name="tiny", step=1, model=config.model, prototypes=config.prototypes,
        classes=synthetic_classes(config.data.synthetic), ignore_index=255,
        input=InputRule(
            channels=3, mean=(network.mean.flatten() / 255).tolist(),
            std=(network.std.flatten() / 255).tolist(), stride_multiple=network.stride_multiple,
            resize=config.data.resize, crop=config.views.crop,
        ),
        data=config.data, eval=config.eval, data_hashes={}, metrics={"miou": 0.5}, method="protoseg",
        weights_sha256="", versions=package_versions(), git_revision=None,
    )  # fmt: skip
    save_checkpoint(folder / "checkpoint", segmenter, info)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(None, list(TINY))
    return save_tiny(tmp_path_factory.mktemp("runs") / "tiny", config, train_tiny(config, 60))


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path) -> Checkpoint:
    return load_checkpoint(run_folder)


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Completed:
    return run_command("export.onnx", run_folder, "--precision", "fp32,fp16,int8,int8-cpu")


@pytest.fixture(scope="session")
def bundle(run_folder: Path, exported: Completed) -> Path:
    folder = run_folder / "bundle"
    assert (folder / "manifest.json").is_file(), exported.err
    return folder
