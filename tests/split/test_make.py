from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from shard_sets import parts, pictures, write_shard

from protoseg.config.data import DataConfig
from protoseg.data.images import save_image, save_mask
from protoseg.data.lists import hash_stems, read_entries
from protoseg.errors import DataError
from protoseg.split.__main__ import main
from protoseg.split.make import make_split


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


def test_shards_are_divided_into_lists_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path / "cache"))
    samples = [sample for split in ("labeled", "val") for sample in pictures(split)]
    (tmp_path / "set").mkdir()
    for number, some in enumerate(parts(samples)):
        write_shard(tmp_path / "set" / f"train-{number}.tar", some)
    pattern = f"{tmp_path}/set/train-*.tar"
    result = make_split(pattern, None, tmp_path / "lists", labeled="3", val="2", classes="a,b,c")
    data = DataConfig(kind="files", **result.settings)
    found = {name: read_entries(data, name).entries for name in ("labeled", "unlabeled", "val")}  # type: ignore[arg-type]
    assert [len(found[name]) for name in ("labeled", "unlabeled", "val")] == [3, 3, 2]
    names = {str(entry.image) for entries in found.values() for entry in entries}
    assert len(names) == 8
    assert all(entry.mask is None for entry in found["unlabeled"])
    assert result.labeled_hash == read_entries(data, "labeled").sha256
