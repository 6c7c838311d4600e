"""Novelty and explanations of a checkpoint in Python: what the commands write, and what is missing said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import photo, tiny_info, tiny_segmenter

import protoseg
from protoseg import Result, Segmenter, UserError
from protoseg.api.explanation import Explanation
from protoseg.checkpoint import save_checkpoint
from protoseg.explain.__main__ import main as explain
from protoseg.novelty.__main__ import main as novelty
from protoseg.predict.__main__ import main as predict


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bare"
    save_checkpoint(folder / "checkpoint", tiny_segmenter(5), tiny_info(5), tiny_segmenter(5, seed=3).network)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_checkpoint(folder / "checkpoint", tiny_segmenter(5), tiny_info(5))
    assert explain([str(folder), "--device", "cpu"]) == 0
    assert novelty([str(folder), "--false-alarms", "0.2", "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Segmenter:
    return Segmenter(run, device="cpu")


@pytest.fixture(scope="module")
def found(model: Segmenter) -> Result:
    return model(photo(1, 40, 56), novelty=True, explain=True)


def test_files_are_those_of_predict(run: Path, model: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/b.png")):
        Image.fromarray(photo(number, 40, 56)).save(tmp_path / "images" / name)
    arguments = [str(run), str(tmp_path / "images"), "-o", str(tmp_path / "cli"), "--explain"]
    assert predict([*arguments, "--device", "cpu"]) == 0
    for result in model.stream(tmp_path / "images", novelty=True, explain=True):
        written = result.save(
            tmp_path / "api", overlay=True, confidence=True, disagreement=True, novelty=True, explain=True
        )
        assert len(written) == 8
    files = [path.relative_to(tmp_path / "cli") for path in sorted((tmp_path / "cli").rglob("*.*"))]
    assert len(files) == 2 * 8 + 1
    for file in files:
        assert (tmp_path / "api" / file).read_bytes() == (tmp_path / "cli" / file).read_bytes(), file


def test_what_lies_above_the_threshold(model: Segmenter, found: Result) -> None:
    assert found.novelty is not None
    assert found.novel is not None
    assert found.novelty.dtype == np.float32
    np.testing.assert_array_equal(found.novel, found.novelty >= 0.5)
    assert 0 < found.novel.mean() < 1
    assert found.novel_share == pytest.approx(found.novel.mean())
    assert f"novel {found.novel_share:.1%}" in repr(found)
    assert "novel (hatched)" in found._repr_html_()
    plain, hatched = np.asarray(found.overlay()), np.asarray(found.overlay(novel=True))
    changed = (plain != hatched).any(2)
    assert changed[found.novel].mean() > 0.95
    # beside outlines all else stays
    assert changed[~found.novel].mean() < 0.2
    without = model(photo(1, 40, 56))
    assert (without.novelty, without.novel, without.novel_share, without.grounds) == (None,) * 4
    with pytest.raises(UserError, match=r"has no novelty; ask for it: model\(image, novelty=True\)"):
        without.overlay(novel=True)


def test_a_pixel_is_explained_as_the_record_says(run: Path, found: Result, tmp_path: Path) -> None:
    why = found.explain(x=np.int64(50), y=3)
    assert isinstance(why, Explanation)
    assert (why.x, why.y, why.id) == (50, 3, found.labels[3, 50])
    assert why.name == f"class{why.id}"
    assert why.prototype_class == f"class{why.prototype.class_id}"
    assert why.prototype.index == 2 * why.prototype.class_id + why.prototype.number
    assert why.runner_up not in (None, why.prototype_class)
    assert why.runner_up_similarity is not None
    assert 1 >= why.similarity >= why.runner_up_similarity >= -1
    atlas = json.loads((run / "prototypes" / "atlas.json").read_text())
    patches = next(item for item in atlas["prototypes"] if item["index"] == why.prototype.index)["patches"]
    assert [item.model_dump(mode="json") for item in why.patches] == patches
    assert [item.size for item in why.thumbnails()] == [(96, 96)] * len(patches)
    with Image.open(run / "prototypes" / why.prototype.strip) as strip:
        np.testing.assert_array_equal(np.asarray(why.thumbnails()[1]), np.asarray(strip)[:, 96:192])
    assert f"resembles {why.prototype_class} {why.prototype.number}, cosine {why.similarity:.2f}" in repr(why)
    picture = np.asarray(why.to_pil())
    other = np.asarray(found.explain(0, 39).to_pil())
    assert picture.shape[1] > 4 * 220
    assert picture.shape != other.shape or (picture != other).any()
    assert why._repr_png_().startswith(b"\x89PNG")
    # the map that is written beside it names the same prototype
    found.save(tmp_path, explain=True)
    places = np.asarray(Image.open(tmp_path / "explain" / "image.png"))
    assert places[3, 50] == why.prototype.index
    said = found.reasons()
    assert said == {key: json.loads((tmp_path / "explain" / "image.json").read_text())[key] for key in said}
    for x, y in ((56, 0), (0, 40), (-1, 0)):
        with pytest.raises(UserError, match=f"no pixel x={x}, y={y}; the image has 56x40"):
            found.explain(x, y)


def test_what_is_missing_is_told_with_its_cure(bare: Path, run: Path, tmp_path: Path) -> None:
    model = protoseg.load(bare, device="cpu")
    for asked, says in (("novelty", "protoseg novelty"), ("explain", r"python -m protoseg\.explain")):
        for call in (lambda image, **o: model(image, **o), lambda image, **o: model.stream([image], **o)):
            with pytest.raises(UserError, match=f"{says} {bare / 'checkpoint'}"):
                call(photo(1), **{asked: True})
    with pytest.raises(UserError, match="without student=True"):
        protoseg.load(bare, device="cpu", student=True)(photo(1), novelty=True)
    result = model(photo(1))
    with pytest.raises(UserError, match=r"ask for it: model\(image, explain=True\)"):
        result.explain(0, 0)
    for part in ("novelty", "explain"):
        with pytest.raises(UserError, match="this result has no"):
            result.save(tmp_path / "out", **{part: True})
    assert not (tmp_path / "out").exists()


def test_windows_and_autocast(run: Path, found: Result) -> None:
    image = photo(1, 40, 56)
    windows = protoseg.load(run, device="cpu")(image, windows=True, scores=False, novelty=True, explain=True)
    assert windows.confidence is None
    assert windows.novelty is not None
    # reasons are of the whole image, as of predict --sliding
    assert windows.explain(5, 5).prototype.index == found.explain(5, 5).prototype.index
    half = protoseg.load(run, device="cpu", precision="bf16")(image, explain=True).explain(5, 5)
    assert half.similarity == pytest.approx(found.explain(5, 5).similarity, abs=0.05)
