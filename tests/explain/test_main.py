"""The command, and ``predict --explain`` with what it made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import photo, tiny_info, tiny_run, tiny_segmenter

from protoseg.checkpoint import save_checkpoint
from protoseg.explain.__main__ import main
from protoseg.explain.atlas import read_atlas
from protoseg.predict.__main__ import main as predict_main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(tmp_path_factory.mktemp("trained"), 5)  # as many classes as the embedded scenes have
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(photo(1, 40, 56)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_what_it_writes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained / "prototypes"
    first = read_atlas(folder)
    assert (len(first.prototypes), first.num_images, first.patch) == (10, 4, 24)
    assert first.prototypes[0].patches[0].image.startswith("synthetic labeled image ")
    with Image.open(folder / "prototypes.png") as sheet:
        assert sheet.width > 400
        assert sheet.height > 5 * 150  # a row for each class
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"atlas.json", "prototypes.png", *(f"{n:04d}.jpg" for n in range(10))}
    # the same again to the byte, in place of the earlier one
    assert main([str(trained)]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    text = capsys.readouterr().out
    assert "class0 0" in text
    assert "10 prototypes" in text
    assert "predict" in text


def test_choices_and_refusals(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), "-o", str(tmp_path / "two"), "--images", "2", "--patch", "8"]) == 0
    atlas = read_atlas(tmp_path / "two")
    assert (atlas.num_images, atlas.patch) == (2, 8)
    full = tmp_path / "mine"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    assert main([str(trained), "-o", str(full)]) == 1
    assert "choose another folder with -o" in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]
    bare = tiny_segmenter(num_classes=5)
    bare.bank.active.fill_(False)
    save_checkpoint(tmp_path / "bare" / "checkpoint", bare, tiny_info(5))
    assert main([str(tmp_path / "bare")]) == 1
    assert "has no prototypes" in capsys.readouterr().err
    moved = [f"{key}={key}.txt" for key in ("labeled", "val", "classes")]
    assert main([str(trained), "--data", "kind=files", f"root={tmp_path}/moved", *moved]) == 1
    assert "moved" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(trained), "--images", "0"])


def test_predict_says_why(trained: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict_main([str(trained), str(picture), "-o", str(out), "--explain", "--head", "prototype"]) == 0
    said = json.loads((out / "explain" / "photo.json").read_text())
    assert (said["height"], said["width"], said["head"]) == (40, 56, "prototype")
    shares = sum(item["share"] for item in said["regions"])
    assert shares == pytest.approx(1, abs=0.01)
    named = {item["index"]: item for item in said["prototypes"]}
    for item in said["regions"]:
        assert named[item["prototype"]]["class"] == item["prototype_class"]
        assert named[item["prototype"]]["patches"]
        assert item["runner_up"] != item["prototype_class"]
    # the picture's large regions, in the classes of the mask and the prototypes of the map
    mask = np.asarray(Image.open(out / "masks" / "photo.png"))
    places = np.asarray(Image.open(out / "explain" / "photo.png"))
    assert places.shape == mask.shape == (40, 56)
    assert places.max() < 10
    assert (places // 2 == mask).mean() > 0.8  # the prototype head's decision, but at borders between cells
    with Image.open(out / "explain" / "photo.jpg") as sheet:
        assert sheet.height > 300
    # a second call takes none of these for an image
    assert predict_main([str(trained), str(tmp_path), "-o", str(out)]) == 0
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["photo.png"]


def test_predict_needs_the_atlas_of_these_weights(
    trained: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    tiny_run(run, 5, seed=1)
    question = [str(run), str(picture), "-o", str(out), "--explain"]
    assert predict_main(question) == 1
    message = capsys.readouterr().err
    assert "make them with: python -m protoseg.explain" in message
    assert not (out / "masks").exists()
    # what it says helps
    assert main([message.rsplit(" ", 1)[1].strip()]) == 0
    assert predict_main(question) == 0
    # other weights since: the old patches are not shown for them
    tiny_run(run, 5, seed=2)
    assert predict_main(question) == 1
