"""Trainings on long lists and shards, from start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from shard_sets import CLASSES, WRITERS
from tiny import TINY

from protoseg.data import lists, long_list
from protoseg.train.__main__ import main
from protoseg.train.state import state_folders

pytestmark = pytest.mark.slow


def write_config(path: Path, root: Path, data: dict[str, Any]) -> Path:
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["data"] = {"kind": "files", "root": str(root), "classes": CLASSES, **data}
    raw["train"] |= {"max_steps": 6, "save_every": 100}
    raw["run"] = {"dir": str(path)}
    (path / "my.yaml").write_text(yaml.safe_dump(raw))
    return path / "my.yaml"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoint" / "model.safetensors")


def test_a_run_that_draws_a_missing_image_keeps_its_state_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("_HEAD", 1), ("_SAMPLED", 1)):
        monkeypatch.setattr(long_list, name, value)
    monkeypatch.setattr(lists, "LONG", 5)
    roles = WRITERS["folders"](tmp_path / "set")
    images = sorted((tmp_path / "set" / "unlabeled" / "images").iterdir())
    (tmp_path / "set" / "u.txt").write_text("".join(f"unlabeled/images/{p.name}\n" for p in images))
    config = str(write_config(tmp_path, tmp_path / "set", roles | {"unlabeled": "u.txt"}))
    assert main(["--config", config, "run.name=straight"]) == 0
    images[7].rename(tmp_path / "away.jpg")
    assert main(["--config", config, "run.name=broken"]) == 1
    assert "u.txt, line 8: image unlabeled/images/unlabeled0007.jpg not found" in capsys.readouterr().err
    assert state_folders(tmp_path / "broken"), "saved where it stopped"
    (tmp_path / "away.jpg").rename(images[7])
    assert main(["--config", config, "run.name=broken", "--resume"]) == 0
    straight, broken = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert all(torch.equal(value, broken[key]) for key, value in straight.items())


def test_shards_train_as_folders_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path / "cache"))
    found = {}
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        config = write_config(tmp_path / kind, tmp_path / kind / "set", write(tmp_path / kind / "set"))
        assert main(["--config", str(config), "run.name=r"]) == 0
        found[kind] = weights(tmp_path / kind / "r")
    for kind in ("tar", "parquet"):
        assert all(torch.equal(value, found[kind][key]) for key, value in found["folders"].items())
