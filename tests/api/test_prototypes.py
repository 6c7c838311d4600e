"""adapt, explain and novelty as functions: what their commands do, with arrays too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import photo, tiny_info, tiny_segmenter

import protoseg
from protoseg import Segmenter, UserError
from protoseg.adapt.__main__ import main as adapt_main
from protoseg.checkpoint import WEIGHTS_NAME, read_info, save_checkpoint
from protoseg.config.data import DataConfig
from protoseg.explain.__main__ import main as explain_main
from protoseg.manifest import ClassInfo
from protoseg.novelty.__main__ import main as novelty_main

NAMES = ["ground", "sky", "water"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a violet box, masks of the box (0 and 255), and masks of ids 0 to 2 in a list."""
    folder = tmp_path_factory.mktemp("place")
    lines = []
    for part in ("images", "boxes", "ids"):
        (folder / part).mkdir()
    for number in range(3):
        image, box = photo(number, 64, 64), np.zeros((64, 64), np.uint8)
        image[8:40, 10:44], box[8:40, 10:44] = (160, 0, 250), 255
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(box).save(folder / "boxes" / f"{number}.png")
        ids = np.repeat(np.arange(64)[:, None] // 22, 64, 1).astype(np.uint8)
        Image.fromarray(ids).save(folder / "ids" / f"{number}.png")
        lines.append(f"images/{number}.png ids/{number}.png\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = DataConfig(kind="files", root=str(place), labeled="list.txt", val="list.txt", classes=NAMES)
    classes = [ClassInfo(name=name, color=(40 * i, 90, 20)) for i, name in enumerate(NAMES)]
    info = tiny_info(3).model_copy(update={"data": data, "classes": classes})
    save_checkpoint(folder / "checkpoint", tiny_segmenter(3), info)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint" / WEIGHTS_NAME).read_bytes()


@pytest.fixture(scope="module")
def expected(run: Path, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "with_box"
    arguments = ["--add", "box", "--images", place / "images", "--masks", place / "boxes", "-o", out]
    assert adapt_main([str(run), *map(str, arguments), "--device", "cpu"]) == 0
    return out


def given(place: Path, kind: str) -> dict[str, Any]:
    """The same images and masks in another form."""
    files = [[place / part / f"{n}.png" for n in range(3)] for part in ("images", "boxes")]
    arrays = [[np.asarray(Image.open(path)) for path in paths] for paths in files]
    forms: dict[str, Any] = {
        "folders": (place / "images", str(place / "boxes")),
        "paths": files,
        "bools": (arrays[0], [mask > 0 for mask in arrays[1]]),
        "mixed": ([path.read_bytes() for path in files[0]], [Image.open(path) for path in files[1]]),
        "tensors": (
            [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in arrays[0]],
            [torch.from_numpy(mask.copy()).long() for mask in arrays[1]],
        ),
    }
    return dict(zip(("images", "masks"), forms[kind], strict=True))


@pytest.mark.parametrize("kind", ["folders", "paths", "bools", "mixed", "tensors"])
def test_a_class_is_added_as_by_the_command(
    run: Path, place: Path, expected: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "with_box"
    model = protoseg.adapt(run, out, add="box", **given(place, kind), device="cpu")
    assert isinstance(model, Segmenter)
    assert (model.names, model.path, model.info.name) == ([*NAMES, "box"], out / "checkpoint", "with_box")
    assert weights(out) == weights(expected)
    (made,) = read_info(out / "checkpoint").adapted or []
    (known,) = read_info(expected / "checkpoint").adapted or []
    assert made.masks == known.masks
    assert len(made.images) == 3
    if kind in ("folders", "paths"):
        assert made == known
    assert model(photo(1)).labels.shape == (40, 48)
    assert (out / "adapt.png").is_file()


def test_other_changes_and_other_images(run: Path, place: Path, tmp_path: Path) -> None:
    assert protoseg.adapt(run, tmp_path / "b", remove="sky").names == ["ground", "water"]
    images = [photo(number, 64, 64) for number in range(2)]
    merged = protoseg.adapt(run, tmp_path / "c", merge=("water", "sky"), others=images)
    assert merged.names == ["ground", "water"]
    assert (read_info(tmp_path / "c" / "checkpoint").adapted or [])[0].others == 2
    mended = protoseg.adapt(
        run, tmp_path / "d", mend="sky", images=place / "list.txt", other_images=0, val=place / "list.txt"
    )
    assert mended.metrics["val"]["miou"]
    assert (tmp_path / "d" / "adapt.json").is_file()
    with pytest.raises(UserError, match="holds a checkpoint already"):
        protoseg.adapt(run, tmp_path / "d", remove="sky")
    coloured = protoseg.adapt(run, tmp_path / "e", add="box", color=(1, 2, 3), other_images=0,
                              images=[photo(1, 64, 64)], masks=[np.eye(64, dtype=bool)])  # fmt: skip
    assert coloured.classes[3].color == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "say one change, got none; there are add, mend, merge, remove, rename"),
        ({"add": "box", "remove": "sky"}, "got add and remove"),
        ({"remove": "sky", "images": "x"}, "--images has no meaning with --remove"),
        ({"add": "box", "images": [photo(1)]}, "lists of one length, got 1 and no list"),
        ({"add": "box", "images": [photo(1)], "masks": []}, "got 1 and 0"),
        ({"add": "box", "images": photo(1), "masks": photo(1)}, "got a ndarray; give a folder"),
        ({"add": "box", "images": [photo(1)], "masks": [np.ones((40, 48))]}, "mask_0 holds float64"),
        ({"add": "box", "images": [photo(1)], "masks": [np.ones((4, 4), bool)]}, "they must be equal"),
        ({"add": "sky"}, "has a class 'sky' already"),
    ],
)
def test_what_cannot_be_done(run: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        protoseg.adapt(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_atlas_and_novelty_are_those_of_the_commands(run: Path, tmp_path: Path) -> None:
    made = protoseg.explain(run, tmp_path / "atlas", images=2, device="cpu")
    assert explain_main([str(run), "-o", str(tmp_path / "cli"), "--images", "2", "--device", "cpu"]) == 0
    names = sorted(path.name for path in (tmp_path / "cli").iterdir())
    for name in names:
        assert (made.folder / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name
    assert repr(made).startswith(f"<Atlas of tiny in {tmp_path / 'atlas'}: 6 prototypes, ")
    assert made._repr_png_() == (tmp_path / "cli" / "prototypes.png").read_bytes()
    fitted = protoseg.novelty(run, false_alarms=0.1, device="cpu")
    assert fitted.path == run / "checkpoint" / "novelty.safetensors"
    before = fitted.path.read_bytes()
    assert novelty_main([str(run), "--false-alarms", "0.1", "--device", "cpu"]) == 0
    assert fitted.path.read_bytes() == before
    assert (fitted.info.labeled_images, set(fitted.false_alarms), fitted.unseen) == (3, set(NAMES), [])
    assert "10.0% of validation pixels" in str(fitted)
    for call, says in (
        (lambda: protoseg.explain(run, images=0), "images must be at least 1"),
        (lambda: protoseg.novelty(run, false_alarms=1), "false_alarms must be between 0 and 1"),
        (lambda: protoseg.explain(run, data={"root": str(tmp_path)}), "list.txt"),
        (lambda: protoseg.novelty(run, data={"root": str(tmp_path)}), "list.txt"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_a_class_that_no_label_shows_is_told(
    expected: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    with caplog.at_level(logging.INFO, "protoseg"):
        protoseg.explain(expected, device="cpu")
        fitted = protoseg.novelty(expected, device="cpu")
    assert "no labelled pixel of box was seen, so that its patches are of other classes" in caplog.text
    assert "no labelled pixel of box was seen, so that it will be called novel" in caplog.text
    assert fitted.unseen == ["box"]
    assert novelty_main([str(expected), "--labeled", str(place / "list.txt"), "--device", "cpu"]) == 0
    assert explain_main([str(expected), "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count("note: no labelled pixel of box") == 2
    # an explanation that is made now is of these weights
    assert protoseg.load(expected, device="cpu")(photo(2), explain=True, novelty=True).novelty is not None
