"""Other prototypes of the same features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_info, tiny_segmenter

from benchmarks import prototype_count
from benchmarks.prototype_count import TRAINED, main, most_used
from protoseg.checkpoint import save_checkpoint
from protoseg.models.prototypes import PrototypeBank


def test_the_share_of_the_most_used_by_hand() -> None:
    bank = PrototypeBank(2, 2, 2)
    bank.start({0: torch.eye(2), 1: torch.eye(2)})
    right, up = torch.tensor([5.0, 1.0]), torch.tensor([1.0, 2.0])
    # three quarters of class 0 lie nearest to its first prototype, all of class 1 to its second
    features = {0: torch.stack([right, right, right, up]), 1: torch.stack([up, up])}
    assert most_used(bank, features) == pytest.approx((0.75 + 1.0) / 2)


def test_every_set_is_measured_on_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototype_count, "PIXELS", 50)
    monkeypatch.setattr(prototype_count, "COUNTS", (1, 3))
    segmenter = tiny_segmenter(num_classes=4)
    save_checkpoint(tmp_path / "run" / "checkpoint", segmenter, tiny_info(4))
    command = [str(tmp_path / "run"), "--images", "2", "--results", str(tmp_path)]
    assert main(command) == 0
    (found,) = json.loads((tmp_path / "prototype_count.json").read_text())["runs"]
    assert list(found["prototypes"]) == [TRAINED, *(f"k-means, K = {count}" for count in (1, 3))]
    assert found["images"] == 2
    assert found["prototypes"]["k-means, K = 1"]["most_used_share"] == 1.0
    fitted = [item["prototype"] for item in found["prototypes"].values()]
    assert len(set(fitted)) > 1  # other prototypes, other figures
    assert all(0 <= value <= 1 for value in [found["linear"], *fitted])
    assert "run" in capsys.readouterr().out
    main(command)  # measured again, not a second row
    assert len(json.loads((tmp_path / "prototype_count.json").read_text())["runs"]) == 1
