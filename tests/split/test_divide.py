from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from protoseg.config.sections import DataConfig
from protoseg.data.images import save_image, save_mask
from protoseg.data.lists import hash_stems, read_entries
from protoseg.errors import DataError
from protoseg.split.__main__ import main
from protoseg.split.divide import divide, make_split, parse_amount

SETS = st.lists(st.frozensets(st.integers(0, 6), max_size=4), min_size=1, max_size=40)


@given(present=SETS, seed=st.integers(0, 2**32), data=st.data())
def test_every_class_is_labeled_and_every_image_used_once(
    present: list[frozenset[int]], seed: int, data: st.DataObject
) -> None:
    labeled = data.draw(st.integers(1, len(present)))
    val = data.draw(st.integers(0, len(present) - labeled))
    classes = frozenset().union(*present)
    try:
        parts = divide(present, labeled, val, seed)
    except DataError:
        if labeled >= len(classes):  # one image for each class is always a cover
            raise
        return
    assert (len(parts.labeled), len(parts.val)) == (labeled, val)
    assert sorted([*parts.labeled, *parts.unlabeled, *parts.val]) == list(range(len(present)))
    assert frozenset().union(*(present[i] for i in parts.labeled)) == classes
    assert divide(present, labeled, val, seed) == parts


def test_seed_changes_the_choice() -> None:
    present = [frozenset({0})] * 60
    parts = [divide(present, 10, 5, seed) for seed in (0, 1)]
    assert parts[0].labeled != parts[1].labeled
    assert parts[0].val != parts[1].val


def test_rarest_class_comes_first_and_a_cover_can_be_exact() -> None:
    # class 2 is only in image 3, which shows class 0 too; class 1 is in 0 and 1
    present = [frozenset({1}), frozenset({1, 0}), frozenset({0}), frozenset({2, 0})]
    for seed in range(10):
        parts = divide(present, 2, 1, seed)
        assert 3 in parts.labeled
        assert {0, 1} & set(parts.labeled)


def test_too_few_labels_say_how_many_are_needed() -> None:
    present = [frozenset({i}) for i in range(5)]
    with pytest.raises(DataError, match=r"2 labelled images cannot show all 5 classes.*--labeled 5"):
        divide(present, 2, 0, 0)
    with pytest.raises(DataError, match="4 labelled and 2 validation images do not fit a set of 5"):
        divide(present, 4, 2, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [("46", 46), ("0.1", 20), ("10%", 20), ("12.5%", 25), ("1.0", 200), (".5", 100), ("1", 1),
     ("0.0001", 1), ("0", 0), ("0%", 0)],
)  # fmt: skip
def test_amounts(text: str, count: int) -> None:
    assert parse_amount(text, 200, "--labeled") == count


@pytest.mark.parametrize("text", ["", "x", "-1", "1/8", "0.1%%", "201", "1.5"])
def test_bad_amounts(text: str) -> None:
    with pytest.raises(DataError, match="--labeled"):
        parse_amount(text, 200, "--labeled")


@pytest.fixture
def labeled_set(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(20):
        name = f"photo {number:02d}.png" if number == 3 else f"photo{number:02d}.png"
        save_image(tmp_path / "set/images" / name, rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        mask = np.zeros((8, 9), np.uint8)
        mask[:2] = 1 + number % 2
        if number == 7:
            mask[5:] = 3
        mask[7, 8] = 255
        save_mask(tmp_path / "set/masks" / name, mask, [])
    return tmp_path / "set"


def test_lists_read_back_and_cover_the_rare_class(labeled_set: Path) -> None:
    out = labeled_set / "splits" / "6"
    result = make_split(
        str(labeled_set / "images"), str(labeled_set / "masks"), out, labeled="6", val="0.2",
        classes="a,b,c,d",
    )  # fmt: skip
    config = DataConfig.model_validate({"kind": "files", **result.settings})
    assert result.settings["labeled"] == "splits/6/labeled.txt"
    found = {name: read_entries(config, name) for name in ("labeled", "unlabeled", "val")}  # type: ignore[arg-type]
    assert [len(found[n].entries) for n in ("labeled", "unlabeled", "val")] == [6, 10, 4]
    assert all(entry.mask is None for entry in found["unlabeled"].entries)
    assert (labeled_set / "images/photo07.png") in [e.image for e in found["labeled"].entries]
    images = {e.image for part in found.values() for e in part.entries}
    assert len(images) == 20
    assert result.labeled_hash == found["labeled"].sha256
    assert result.labeled_hash == hash_stems([e.image for e in found["labeled"].entries])
    assert result.coverage["d"] == {"all": 1, "labeled": 1, "unlabeled": 0, "val": 0}
    assert any("not in val" in text and "d" in text for text in result.warnings)


def test_existing_lists_are_kept(labeled_set: Path) -> None:
    args = (str(labeled_set / "images"), str(labeled_set / "masks"), labeled_set / "s")
    make_split(*args, labeled="4")
    before = (labeled_set / "s/labeled.txt").read_bytes()
    with pytest.raises(DataError, match="add --force to replace"):
        make_split(*args, labeled="4", seed=1)
    assert (labeled_set / "s/labeled.txt").read_bytes() == before
    make_split(*args, labeled="4", force=True)
    assert (labeled_set / "s/labeled.txt").read_bytes() == before
    make_split(*args, labeled="4", seed=1, force=True)
    assert (labeled_set / "s/labeled.txt").read_bytes() != before


def test_no_leftovers_means_no_list(labeled_set: Path) -> None:
    args = (str(labeled_set / "images"), str(labeled_set / "masks"), labeled_set / "s")
    make_split(*args, labeled="4")
    result = make_split(*args, labeled="0.8", val="0.2", force=True)
    assert sorted(result.files) == ["labeled", "val"]
    assert not (labeled_set / "s/unlabeled.txt").exists()
    assert result.settings["unlabeled"] is None
    assert any("method.preset=supervised" in text for text in result.warnings)
    assert any("--val" in t for t in make_split(*args, labeled="4", val="0", force=True).warnings)


def test_bad_masks_stop_the_split_before_anything_is_written(labeled_set: Path) -> None:
    (labeled_set / "masks/photo05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"photo05\.png cannot be decoded"):
        make_split(str(labeled_set / "images"), str(labeled_set / "masks"), labeled_set / "s", labeled="4")
    assert not (labeled_set / "s").exists()


def test_list_file_with_root_and_label_map(labeled_set: Path) -> None:
    for path in (labeled_set / "masks").iterdir():
        save_image(path, np.eye(8, 9, dtype=np.uint8) * 255)
    lines = "".join(f"images/photo{i:02d}.png masks/photo{i:02d}.png\r\n" for i in range(4, 14))
    (labeled_set / "all.txt").write_text(lines)
    keys = {"labeled": "2", "root": str(labeled_set)}
    plain = make_split(str(labeled_set / "all.txt"), None, labeled_set / "a", **keys)  # type: ignore[arg-type]
    assert any("only one class was found" in text for text in plain.warnings)
    result = make_split(
        str(labeled_set / "all.txt"), None, labeled_set / "b", classes="ground,thing",
        label_map='{"0": 0, "255": "thing"}', **keys,
    )  # type: ignore[arg-type]  # fmt: skip
    assert result.coverage["thing"]["all"] == 10
    config = DataConfig.model_validate({"kind": "files", **result.settings})
    assert len(read_entries(config, "labeled").entries) == 2


def test_command(labeled_set: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "protoseg.split", "set/images", "set/masks", "--labeled", "4",
         "--val", "5", "-o", "set/splits", "--classes", "a,b,c,d"],
        cwd=labeled_set.parent, capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    section = yaml.safe_load(found.stdout[found.stdout.index("data:") :])["data"]
    config = DataConfig.model_validate(section)
    assert len(read_entries(config, "labeled").entries) == 4
    assert len(read_entries(config, "val").entries) == 5
    assert "hash of the labelled list: " in found.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["images", "gone", "--labeled", "2"], "gone not found"),
        (["images", "--labeled", "2"], "is a folder: give the folder of masks too"),
        (["images", "masks", "--labeled", "99"], "asks for 99 of 20 images"),
        (["images", "masks", "--labeled", "1"], "cannot show all 4 classes"),
        (["images", "masks", "--labeled", "4", "--classes", "a,b"], "value(s) without a class: 2"),
        (["images", "masks", "--labeled", "4", "--label-map", "{"], "not valid JSON"),
        (["images", "masks", "--labeled", "4", "--label-map", '{"0": 0}'], "needs --classes"),
        (["images", "masks", "--labeled", "4", "--seed", "-1"], "--seed must be at least 0"),
    ],
)
def test_user_errors(
    labeled_set: Path, args: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(labeled_set)
    assert main([*args, "-o", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (labeled_set / "out").exists()
