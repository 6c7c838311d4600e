from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import TINY, photo

from protoseg.check.inspect import inspect
from protoseg.config.load import load_config
from protoseg.convert.__main__ import main as convert
from protoseg.data.lists import read_entries
from protoseg.data.palette import voc_palette
from protoseg.init.__main__ import main

NAMES = [f"{i:02d}" for i in range(10)]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(seed, 64, 96)).save(path)


def mask(path: Path, seed: int, values: tuple[int, ...] = (0, 1, 2), palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(seed).choice(np.array(values, np.uint8), (4, 6))
    ids.flat[: len(values)] = values
    image = Image.fromarray(np.repeat(np.repeat(ids, 16, 0), 16, 1))
    if palette:
        image.putpalette([part for color in voc_palette(256) for part in color])
    image.save(path)


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, code: int = 0) -> dict:
    """Run init in an empty working folder; the file must load and pass the whole check."""
    work = folder.parent / f"{folder.name}_work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert main([str(folder), *options]) == code
    raw = yaml.safe_load((work / "my.yaml").read_text())
    if code == 0:
        # the network is not in question, and a small one is built in no time
        small = TINY["model"] | {"pretrained": "none"}
        config = load_config("my.yaml", [f"model.{key}={value}" for key, value in small.items()])
        report = inspect(config, quick=False)
        assert report.ok, report.problem_lines()
    return raw


def counts() -> tuple[int, int, int]:
    data = load_config("my.yaml").data
    return tuple(len(read_entries(data, part).entries) for part in ("labeled", "unlabeled", "val"))


def folder_pairs(root: Path, labelled: list[str] = NAMES, **options) -> None:
    for i, name in enumerate(NAMES):
        picture(root / "images" / f"{name}.png", i)
        if name in labelled:
            mask(root / "masks" / f"{name}.png", i, **options)


def test_folders_of_images_and_masks_with_a_class_file(tmp_path, monkeypatch, capsys):
    folder_pairs(tmp_path / "camvid")
    (tmp_path / "camvid" / "classes.txt").write_text("sky\nroad\ncar\n")
    raw = written(tmp_path / "camvid", monkeypatch)
    assert counts() == (8, 0, 2)
    assert raw["data"]["classes"] == "classes.txt"
    assert raw["data"]["root"] == str(tmp_path / "camvid")
    assert raw["method"]["preset"] == "supervised", "nothing is unlabelled"
    assert raw["views"]["crop"] == [64, 96]
    out = capsys.readouterr().out
    assert "CHECK val: 2 of 10 labelled images, chosen with seed 0, as no part is called val" in out
    assert out.endswith("next: protoseg check --config my.yaml\n")
    assert "# CHECK: 2 of 10" in Path("my.yaml").read_text()
    assert "CHECK classes" not in out, "a class file is certain"


def test_a_few_masks_and_many_images(tmp_path, monkeypatch, capsys):
    folder_pairs(tmp_path / "few", NAMES[:5], values=(0, 255))
    raw = written(tmp_path / "few", monkeypatch, "--val", "2")
    assert counts() == (3, 5, 2)
    assert raw["data"]["classes"] == ["background", "object"]
    assert raw["data"]["label_map"] == {"0": "background", "255": "object"}
    assert raw["method"]["preset"] == "protoseg"
    assert "CHECK classes: no file of class names" in capsys.readouterr().out


@pytest.mark.parametrize("palette", [True, False], ids=["palette", "grey"])
def test_the_layout_of_voc(tmp_path, monkeypatch, palette, capsys):
    root = tmp_path / "VOC2012"
    for i, name in enumerate(NAMES):
        picture(root / "JPEGImages" / f"2007_0000{name}.jpg", i)
        if i < 6:
            mask(root / "SegmentationClass" / f"2007_0000{name}.png", i, (0, 1, 15, 255), palette)
            mask(root / "SegmentationObject" / f"2007_0000{name}.png", i, (0, 1, 2), palette)
    lists = root / "ImageSets"
    for part, names in {"train": NAMES[:4], "val": NAMES[4:6], "trainval": NAMES[:6]}.items():
        (lists / "Segmentation").mkdir(parents=True, exist_ok=True)
        (lists / "Segmentation" / f"{part}.txt").write_text("".join(f"2007_0000{n}\n" for n in names))
    (lists / "Main").mkdir()
    (lists / "Main" / "train.txt").write_text("".join(f"2007_0000{n}\n" for n in NAMES))
    raw = written(root, monkeypatch)
    assert counts() == (4, 4, 2), "unlabelled: what no list names"
    assert raw["data"]["labeled"] == "ImageSets/Segmentation/train.txt"
    assert raw["data"]["label_map"] == "voc"
    assert "CHECK label_map" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["{}_mask.png", "{}.png"])
def test_masks_beside_their_images(tmp_path, monkeypatch, form):
    root = tmp_path / "beside"
    for i, name in enumerate(NAMES):
        picture(root / f"{name}.jpg", i)
        if i < 5:
            mask(root / form.format(name), i)
    raw = written(root, monkeypatch, "--classes", "sky,road,car", "--name", "own")
    assert counts() == (4, 5, 1)
    assert raw["data"]["classes"] == ["sky", "road", "car"]
    assert raw["run"]["name"] == "own"


def test_lists_are_used_as_they_are(tmp_path, monkeypatch, capsys):
    root = tmp_path / "lists"
    folder_pairs(root)
    (root / "splits").mkdir()
    for part, names in {"labeled": NAMES[:3], "val": NAMES[3:5]}.items():
        (root / "splits" / f"{part}.txt").write_text(
            "".join(f"images/{n}.png masks/{n}.png\n" for n in names)
        )
    (root / "splits" / "unlabeled.txt").write_text("".join(f"images/{n}.png\n" for n in NAMES[5:]))
    raw = written(root, monkeypatch)
    assert counts() == (3, 5, 2)
    assert [raw["data"][part] for part in ("labeled", "unlabeled", "val")] == [
        "splits/labeled.txt", "splits/unlabeled.txt", "splits/val.txt"
    ]  # fmt: skip
    assert not Path("my_lists").exists()
    assert "CHECK labeled" not in capsys.readouterr().out


def test_a_choice_among_lists_is_told(tmp_path, monkeypatch, capsys):
    root = tmp_path / "sizes"
    folder_pairs(root)
    for size in (2, 4):
        (root / "splits" / str(size)).mkdir(parents=True)
        lines = [f"images/{n}.png masks/{n}.png\n" for n in NAMES[:size]]
        (root / "splits" / str(size) / "labeled.txt").write_text("".join(lines))
    (root / "splits" / "val.txt").write_text("images/08.png masks/08.png\n")
    written(root, monkeypatch)
    assert counts() == (2, 7, 1)
    assert "CHECK labeled: there are other lists: splits/4/labeled.txt" in capsys.readouterr().out


def test_folders_called_train_and_val(tmp_path, monkeypatch, capsys):
    root = tmp_path / "parts"
    for i, name in enumerate(NAMES):
        part = "val" if i >= 8 else "test" if i == 7 else "train"
        picture(root / part / "images" / f"{name}.jpg", i)
        mask(root / part / "labels" / f"{name}.png", i)
    picture(root / "unlabeled" / "a.jpg", 20)
    written(root, monkeypatch)
    assert counts() == (7, 1, 2)
    out = capsys.readouterr().out
    assert "1 image(s) of test are left out" in out
    assert "CHECK val" not in out


def test_masks_found_by_what_they_hold(tmp_path, monkeypatch, capsys):
    root = tmp_path / "strange"
    for i, name in enumerate(NAMES):
        picture(root / "in" / f"{name}.png", i)
        mask(root / "out" / f"{name}.png", i, (0, 3, 7))
    # patches have few colours, photographs many
    for path in (root / "in").iterdir():
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(int(path.stem))).save(path)
    raw = written(root, monkeypatch)
    assert raw["data"]["label_map"] == {"0": "class_0", "3": "class_3", "7": "class_7"}
    assert "out/ was taken for masks" in capsys.readouterr().out


def test_the_result_of_convert(tmp_path, monkeypatch):
    source = tmp_path / "export"
    for i, name in enumerate(NAMES):
        picture(source / f"{name}.jpg", i)
        if i < 6:
            shape = {"label": "crack", "shape_type": "polygon", "points": [[4, 4], [60, 4], [60, 50 + i]]}
            text = {"version": "5", "imagePath": f"{name}.jpg", "imageHeight": 64, "imageWidth": 96,
                    "imageData": None, "flags": {}, "shapes": [shape]}  # fmt: skip
            (source / f"{name}.json").write_text(json.dumps(text))
    assert convert([str(source), "-o", str(tmp_path / "made")]) == 0
    raw = written(tmp_path / "made", monkeypatch)
    assert counts() == (5, 4, 1)
    assert raw["data"]["classes"] == ["background", "crack"]


def test_images_alone_need_a_few_masks(tmp_path, monkeypatch, capsys):
    for i, name in enumerate(NAMES):
        picture(tmp_path / "photos" / f"{name}.jpg", i)
    monkeypatch.chdir(tmp_path)
    assert main(["photos"]) == 1
    assert not Path("my.yaml").exists()
    error = capsys.readouterr().err
    assert "10 images and no mask" in error
    assert "protoseg convert" in error
    assert "Traceback" not in error


def test_annotations_lead_to_convert(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "e" / "a.jpg", 0)
    (tmp_path / "e" / "a.json").write_text(json.dumps({"version": "5", "shapes": [], "imagePath": "a.jpg"}))
    monkeypatch.chdir(tmp_path)
    assert main(["e"]) == 1
    assert "protoseg.convert" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    folder_pairs(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("precious")
    assert main(["own"]) == 1
    assert Path("my.yaml").read_text() == "precious"
    Path("my.yaml").unlink()
    Path("my_lists").mkdir()
    Path("my_lists/val.txt").write_text("precious")
    assert main(["own"]) == 1
    assert Path("my_lists/val.txt").read_text() == "precious"
    assert not Path("my.yaml").exists()
    assert "overwrit" in capsys.readouterr().err


def test_one_mask_and_photographs_called_masks_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_pairs(tmp_path / "one", NAMES[:1])
    assert main(["one"]) == 1
    assert "at least two are needed" in capsys.readouterr().err
    for i, name in enumerate(NAMES):
        picture(tmp_path / "soft" / "images" / f"{name}.jpg", i)
        (tmp_path / "soft" / "masks").mkdir(exist_ok=True)
        ramp = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
        Image.fromarray(ramp).save(tmp_path / "soft" / "masks" / f"{name}.png")
    assert main(["soft"]) == 1
    assert "soft edges" in capsys.readouterr().err
    assert not Path("my.yaml").exists()


def test_what_check_would_refuse_is_told_at_once(tmp_path, monkeypatch, capsys):
    folder_pairs(tmp_path / "wrong", values=(0, 1, 2, 9))
    written(tmp_path / "wrong", monkeypatch, "--classes", "sky,road,car", code=1)
    out = capsys.readouterr().out
    assert "masks with values that no class has" in out
    assert "it needs attention" in out


def test_a_single_class_gets_its_background(tmp_path, monkeypatch, capsys):
    folder_pairs(tmp_path / "cracks", NAMES[:4], values=(0, 1))
    (tmp_path / "cracks" / "classes.txt").write_text("crack\n")
    raw = written(tmp_path / "cracks", monkeypatch)
    assert raw["data"]["classes"] == ["background", "crack"]
    assert "CHECK classes: the masks hold 0, 1; add the background" in capsys.readouterr().out


def test_colours_by_a_class_file(tmp_path, monkeypatch):
    root = tmp_path / "colours"
    for i, name in enumerate(NAMES):
        picture(root / "images" / f"{name}.jpg", i)
        mask(root / "labels" / f"{name}.png", i, (0, 1), palette=True)
        with Image.open(root / "labels" / f"{name}.png") as indexed:
            colours = indexed.convert("RGB")
        colours.save(root / "labels" / f"{name}.png")
    (root / "class_dict.csv").write_text("name,r,g,b\nsoil,0,0,0\nplant,128,0,0\n")
    raw = written(root, monkeypatch)
    assert raw["data"]["classes"] == raw["data"]["label_map"] == "class_dict.csv"


def test_jpeg_masks_are_refused_by_their_name(tmp_path, monkeypatch, capsys):
    for i, name in enumerate(NAMES):
        picture(tmp_path / "jpeg" / "images" / f"{name}.jpg", i)
        picture(tmp_path / "jpeg" / "masks" / f"{name}.jpg", i)
    monkeypatch.chdir(tmp_path)
    assert main(["jpeg"]) == 1
    assert "Export the masks as PNG" in capsys.readouterr().err
