"""A bundle that can be explained: its outputs, their proof, and the training patches in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.bundle import verify_bundle
from export.onnx import export_checkpoint, main
from export.runners.contract import RunnerError
from export.runtime import load_runner
from protoseg.checkpoint import Checkpoint, read_info
from protoseg.explain.atlas import fitting_atlas, read_atlas, read_thumbnails


@pytest.fixture(scope="module")
def run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(
        shutil.copytree(run_folder / "checkpoint", tmp_path_factory.mktemp("run") / "checkpoint")
    ).parent


@pytest.fixture(scope="module")
def explaining(run: Path) -> Path:
    return export_checkpoint(run, explain=True).folder


@pytest.mark.slow
def test_it_has_what_the_service_reads(run: Path, explaining: Path, checkpoint: Checkpoint) -> None:
    manifest = verify_bundle(explaining)
    assert manifest.atlas is not None
    assert {item.name for item in manifest.files[0].outputs} == {
        "labels", "confidence", "agreement", "prototype", "similarity",
    }  # fmt: skip
    difference = manifest.files[0].parity.cases[0].metrics["similarity/max_diff"]
    assert difference is not None
    assert difference < 1e-5
    # the run had no atlas: it was made, and the bundle's is the same, smaller
    made = fitting_atlas(run / "prototypes", read_info(run / "checkpoint").weights_sha256)
    assert made is not None
    packed = read_atlas(explaining / manifest.atlas.folder)
    assert [item.use_share for item in packed.prototypes] == [item.use_share for item in made.prototypes]
    assert packed.side < made.side
    assert len(read_thumbnails(explaining / manifest.atlas.folder, packed, 0)) == len(
        made.prototypes[0].patches
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    with load_runner(explaining, provider="cpu") as runner:
        found = runner(image)
    classes, count = len(manifest.classes), manifest.graph.prototypes
    assert found["similarity"].shape == (1, classes, *found["prototype"].shape[1:])
    assert (found["similarity"].argmax(1) == found["prototype"] // count).mean() > 0.99


@pytest.mark.slow
def test_a_changed_thumbnail_is_found(explaining: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(explaining, tmp_path / "bundle"))
    (copy / "prototypes" / "0000.jpg").write_bytes(b"another picture")
    with pytest.raises(RunnerError, match=r"0000\.jpg"):
        verify_bundle(copy)


def test_without_the_training_images_it_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run / "checkpoint", tmp_path / "run" / "checkpoint"))
    info = copy / "config.json"
    raw = json.loads(info.read_text())
    raw["data"] |= {"kind": "files", "root": f"{tmp_path}/gone"}
    raw["data"] |= {key: f"{key}.txt" for key in ("labeled", "val", "classes")}
    info.write_text(json.dumps(raw))
    assert main([str(copy.parent), "--explain"]) == 1
    assert "gone is not a folder" in capsys.readouterr().err
    assert not (copy.parent / "bundle").exists()
