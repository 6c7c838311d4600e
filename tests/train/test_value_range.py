"""The range of values goes from the data into training, checkpoint, prediction, export and serving alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.calibration import checkpoint_images, folder_images
from protoseg.config.load import parse_config
from protoseg.config.method import PrototypeConfig
from protoseg.config.sections import Config
from protoseg.data.images import read_image
from protoseg.data.pictures import reading
from protoseg.evaluate.measure import read_samples
from protoseg.input_rule import InputRule
from protoseg.train.data import open_run_data
from protoseg.train.results import network_info


def deep_set(root: Path, top: int = 4000, **data: object) -> Config:
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"labeled": [], "val": [], "unlabeled": []}
    for number, split in enumerate(["labeled", "labeled", "val", "unlabeled"]):
        image, mask = root / f"{split}{number}.png", root / f"mask{number}.png"
        Image.fromarray(rng.integers(0, top + 1, (20, 24)).astype(np.uint16)).save(image)
        Image.fromarray((np.arange(480).reshape(20, 24) % 2).astype(np.uint8)).save(mask)
        lines[split].append(image.name if split == "unlabeled" else f"{image.name} {mask.name}")
    for split, entries in lines.items():
        (root / f"{split}.txt").write_text("\n".join(entries))
    lists = {split: f"{split}.txt" for split in lines}
    return parse_config(
        {
            "data": {
                "kind": "files",
                "root": str(root),
                **lists,
                "classes": ["a", "b"],
                "in_channels": 1,
                **data,
            },
            "views": {"crop": [16, 16]},
            "train": {"max_steps": 100, "batch_size": 2},
        }
    )


def test_one_range_everywhere(tmp_path: Path) -> None:
    config = deep_set(tmp_path)
    data = open_run_data(config)
    assert data.value_range == (0, 4095)
    info = network_info(config, data, PrototypeConfig(), 32)
    info = type(info).model_validate_json(info.model_dump_json())
    assert info.input.value_range == info.data.value_range == (0, 4095)
    path = tmp_path / "val2.png"
    seen = data.val.image(0)
    with Image.open(path) as image:
        np.testing.assert_array_equal(seen[..., 0], np.floor(np.asarray(image) * 255.0 / 4095 + 0.5))
    np.testing.assert_array_equal(read_image(path, 1, reading(info.data, info.input)), seen)
    np.testing.assert_array_equal(read_samples(info.data, "val", info)[0][0][0], seen)
    np.testing.assert_array_equal(checkpoint_images(info, "val", 1)[0].pixels, seen)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/val2.png").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(folder_images(tmp_path / "more", info, 1)[0].pixels, seen)
    decode = pytest.importorskip("serving.pixels.decode")
    limits = decode.ImageLimits(10**6, 1000, ("png",))
    served = decode.decode(path.read_bytes(), limits, 1, info.input.value_range, info.input.exif)
    np.testing.assert_array_equal(served, seen)


def test_a_given_range_is_kept_and_bytes_have_none(tmp_path: Path) -> None:
    given = deep_set(tmp_path, value_range=[0, 2000])
    data = open_run_data(given)
    assert data.value_range == (0, 2000)
    assert data.labeled.image(0).max() == 255
    for path in tmp_path.glob("[!m]*.png"):
        with Image.open(path) as image:
            small = (np.asarray(image) // 16).astype(np.uint8)
        Image.fromarray(small).save(path)
    assert open_run_data(given).labeled.image(0).max() == 249  # as it is in the file
    plain = deep_set(tmp_path, top=255)
    for path in tmp_path.glob("[!m]*.png"):
        with Image.open(path) as image:
            small = np.asarray(image).astype(np.uint8)
        Image.fromarray(small).save(path)
    assert open_run_data(plain).value_range is None


def test_a_record_without_a_range_divides_by_257(tmp_path: Path) -> None:
    old = {
        "channels": 1, "mean": [0.5], "std": [0.5], "stride_multiple": 32, "resize": {"mode": "none"},
        "crop": [16, 16],
    }  # fmt: skip
    rule = InputRule.model_validate_json(json.dumps(old))
    config = deep_set(tmp_path)
    found = read_image(tmp_path / "val2.png", 1, reading(config.data, rule))
    with Image.open(tmp_path / "val2.png") as image:
        np.testing.assert_array_equal(found[..., 0], np.round(np.asarray(image) / 257))
