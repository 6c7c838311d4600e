"""``protoseg predict`` with a bundle: the files of a checkpoint's, without torch."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import quiet_environment

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from protoseg import Bundle
from protoseg.cli.predict import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "run" / "bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a", "more/a", "z")):
        Image.fromarray(sample_image(60, 90, seed=number)).save(folder / f"{name}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0cut short")
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_hold_what_the_bundle_says(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [str(bundle.parent), str(photos), "--device", "cpu"]  # a run folder that holds the bundle alone
    assert main([*command, "-o", str(out), "--workers", "3"]) == 1
    told = capsys.readouterr()
    assert "3 of 4 images" in told.out
    assert "cut.jpg" in told.err
    stems = ("a", "more/a", "z")
    kinds = {"masks": "png", "overlays": "jpg", "confidence": "png", "disagreement": "png"}
    names = [f"{kind}/{stem}.{suffix}" for kind, suffix in kinds.items() for stem in stems]
    written = files_below(out)
    assert sorted(written) == sorted([*names, "predictions.csv"])
    with Bundle(bundle, device="cpu") as model, Image.open(out / "masks" / "z.png") as mask:
        result = model(photos / "z.png")
        assert np.array_equal(np.asarray(mask), result.labels)
        with Image.open(out / "confidence" / "z.png") as confidence:
            assert result.confidence is not None
            assert np.abs(np.asarray(confidence) / 255 - result.confidence).max() < 0.51 / 255
        rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
        done = {row["name"]: row for row in rows if row["masks"]}
        assert set(done) == set(stems)
        assert (done["a"]["run"], done["a"]["step"]) == (model.info.name, model.info.version)
    one = tmp_path / "one"
    assert main([*command, "-o", str(one), "--workers", "1"]) == 1
    assert files_below(one) == written


def test_a_bundle_writes_what_it_can_tell(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_bundle(tmp_path / "bundle", outputs=("labels",))
    command = [str(made), str(photos / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    assert {name.partition("/")[0] for name in files_below(tmp_path / "out")} == {
        "masks", "overlays", "predictions.csv",
    }  # fmt: skip
    capsys.readouterr()
    drafts = ["--format", "coco", "--min-confidence", "0.5"]
    for more, text in (
        (["--soft"], "--soft is for a checkpoint"),
        (["--student"], "--student is for a checkpoint"),
        (["--explain"], "bundle has no"),
        (["--head", "fused"], "not fused; export it with"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (drafts, "--min-confidence needs the output confidence"),
    ):
        assert main([*command, *more]) == 1
        assert text in capsys.readouterr().err
    assert main([*command, "--format", "coco"]) == 0
    assert (tmp_path / "out" / "coco.json").is_file()


def test_torch_is_not_imported(bundle: Path, photos: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom protoseg.cli.predict import main\n"
        f"assert main([{str(bundle)!r}, {str(photos / 'a.png')!r}, '-o', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert not {'torch', 'accelerate'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=quiet_environment(), check=True, timeout=300)
