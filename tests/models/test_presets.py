"""Each named network on random weights: it trains a step, and what is exported computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from segmenter_tester import NUM_CLASSES, balance, exported
from tiny import TINY, tiny_info

from protoseg.checkpoint import load_checkpoint, save_checkpoint
from protoseg.config.load import parse_config
from protoseg.config.sections import Config
from protoseg.models.segmenter import build_segmenter
from protoseg.train.loop import train

STATIC = {"convnext_tiny_upernet": (1, 64, 96)}
"""UPerNet's pooling pyramid is traced at one size."""
NAMES = ("dinov3_small_dpt", "convnext_tiny_upernet", "mobilenetv4_medium", "regnety_1_6gf")


def preset_config(name: str, folder: Path) -> Config:
    raw = {**TINY, "model": {"preset": name}, "run": {"dir": str(folder), "name": name}}
    raw["train"] = {**TINY["train"], "max_steps": 2, "warmup_steps": 1}
    return parse_config(raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_with_and_without_unlabelled_images(name: str, tmp_path: Path) -> None:
    config = preset_config(name, tmp_path)
    train(config)
    trained = load_checkpoint(config.run.path)
    assert trained.info.step == 2
    assert trained.info.model.preset == name
    state = trained.segmenter.network.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert set(trained.info.metrics["val"]["miou"]) == {"linear", "prototype", "fused"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_exports_with_parity(name: str, tmp_path: Path) -> None:
    config = preset_config(name, tmp_path)
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=NUM_CLASSES).eval()
    balance(segmenter)
    info = tiny_info(NUM_CLASSES, **config.model.model_dump())
    rule = info.input.model_copy(update={"stride_multiple": segmenter.network.stride_multiple})
    save_checkpoint(tmp_path / "checkpoint", segmenter, info.model_copy(update={"input": rule}))
    report = exported(load_checkpoint(tmp_path), tmp_path, STATIC.get(name))
    assert report.status == "passed", report.reason
