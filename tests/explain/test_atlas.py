"""The atlas on disk: written, read, packed for a bundle, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoseg.errors import DataError
from protoseg.explain import atlas as files
from protoseg.explain.atlas import (
    ATLAS_NAME,
    Atlas,
    Patch,
    Prototype,
    fitting_atlas,
    pack_atlas,
    read_atlas,
    read_thumbnails,
    run_strips,
    write_atlas,
)  # fmt: skip
from protoseg.files import sha256_file

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def made(folder: Path, *, num_patches: int = 3, noise: bool = False) -> Atlas:
    """An atlas of two prototypes whose thumbnails are plain colours, or hard to compress."""
    patches = [
        Patch(image=f"{n}.png", y=n, x=n, box=(0, 0, 8, 8), cosine=0.9 - n / 10, label="thing")
        for n in range(num_patches)
    ]
    prototypes = [
        Prototype(index=i, class_id=i, number=0, use_share=1.0, precision=None, doubts=[], patches=patches,
                  strip=f"{i:04d}.jpg")
        for i in range(2)
    ]  # fmt: skip
    atlas = Atlas(name="run", step=3, weights_sha256="ab", classes=["thing", "other"], num_prototypes=1,
                  num_images=4, patch=8, side=files.THUMBNAIL, prototypes=prototypes)  # fmt: skip
    rng, side = np.random.default_rng(0), files.THUMBNAIL
    pictures = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        if noise else Image.new("RGB", (side, side), COLOURS[n % 3])
        for n in range(num_patches)
    ]  # fmt: skip
    folder.mkdir()
    write_atlas(folder, atlas, run_strips({item.strip: pictures for item in prototypes}))
    return atlas


def test_written_and_read(tmp_path: Path) -> None:
    atlas = made(tmp_path / "run")
    assert read_atlas(tmp_path / "run") == atlas
    thumbnails = read_thumbnails(tmp_path / "run", atlas, 1)
    assert [item.size for item in thumbnails] == [(files.THUMBNAIL,) * 2] * 3
    for item, colour in zip(thumbnails, COLOURS, strict=True):
        assert np.abs(np.asarray(item)[48, 48].astype(int) - colour).max() < 12
    assert fitting_atlas(tmp_path / "run", "ab") == atlas
    assert fitting_atlas(tmp_path / "run", "of other weights") is None
    assert fitting_atlas(tmp_path, "ab") is None


def test_packed_for_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "run", num_patches=6, noise=True)
    hashes = pack_atlas(tmp_path / "run", tmp_path / "small")
    assert set(hashes) == {ATLAS_NAME, "0000.jpg", "0001.jpg"}
    assert all(sha256_file(tmp_path / "small" / name) == value for name, value in hashes.items())
    packed = read_atlas(tmp_path / "small")
    assert (packed.side, len(packed.prototypes[0].patches)) == (64, 6)
    assert len(read_thumbnails(tmp_path / "small", packed, 0)) == 6
    # too much for the limit: fewer and smaller, and atlas.json says so
    whole = sum((tmp_path / "small" / item.strip).stat().st_size for item in packed.prototypes)
    monkeypatch.setattr(files, "BUNDLE_BYTES", whole // 3)
    pack_atlas(tmp_path / "run", tmp_path / "smaller")
    tight = read_atlas(tmp_path / "smaller")
    strips = [tmp_path / "smaller" / item.strip for item in tight.prototypes]
    assert sum(path.stat().st_size for path in strips) <= whole // 3
    assert 1 <= len(tight.prototypes[0].patches) < 6
    with Image.open(strips[0]) as strip:
        assert strip.size == (tight.side * len(tight.prototypes[0].patches), tight.side)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "there is no"), ("{", "cannot be read"), ("{}", "schema version None"),
     ('{"schema_version": 1, "name": "x"}', "is not an atlas")],
)  # fmt: skip
def test_what_is_no_atlas_is_told_with_a_cure(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / ATLAS_NAME).write_text(text)
    with pytest.raises(DataError, match=said) as error:
        read_atlas(tmp_path)
    assert "protoseg explain RUN" in str(error.value)


def test_a_missing_strip_is_told(tmp_path: Path) -> None:
    atlas = made(tmp_path / "run")
    (tmp_path / "run" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"0001\.jpg cannot be read"):
        read_thumbnails(tmp_path / "run", atlas, 1)
