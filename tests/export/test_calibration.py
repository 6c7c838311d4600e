"""Images for calibration and parity."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.calibration import checkpoint_images, folder_images, images_hash
from protoseg.checkpoint import Checkpoint
from protoseg.errors import ExportError


def test_calibration_images_are_spread_and_hashed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    info = checkpoint.info
    images = checkpoint_images(info, "unlabeled", 4)
    assert [i.name for i in images] == [f"unlabeled-{n}.png" for n in (0, 3, 6, 9)]
    assert all(i.mask is None for i in images)
    assert images_hash(images) == images_hash(checkpoint_images(info, "unlabeled", 4))
    assert images_hash(images) != images_hash(images[:3])
    from PIL import Image

    for image in images:
        Image.fromarray(image.pixels).save(tmp_path / image.name)
    found = folder_images(tmp_path, info, 10)
    assert images_hash(found) == images_hash(images)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"broken\.png"):
        folder_images(tmp_path, info, 10)


def test_files_that_have_gone_are_named_with_the_cure(checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = checkpoint.info.data.model_copy(
        update={"kind": "files", "root": str(tmp_path), "val": "val.txt", "labeled": "labeled.txt"}
    )
    info = checkpoint.info.model_copy(update={"data": data})
    with pytest.raises(ExportError, match=r"not where they were.*--calibrate FOLDER"):
        checkpoint_images(info, "val", 2)
    moved = data.model_copy(update={"root": str(tmp_path / "gone")})
    info = checkpoint.info.model_copy(update={"data": moved})
    # not the trainer's cure, which the exporter does not take
    with pytest.raises(ExportError, match=r"gone is not a folder \([^;]*\); name a folder"):
        checkpoint_images(info, "val", 2)
