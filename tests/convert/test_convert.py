"""What holds for every format: names, sizes, classes, lists, targets and messages."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from protoseg.config.data import DataConfig
from protoseg.convert.__main__ import main
from protoseg.convert.division import choose_val, group_names
from protoseg.convert.find import FORMATS
from protoseg.convert.frames import Frame, annotated_frame, turn_upright
from protoseg.convert.source import part_of
from protoseg.data.images import read_image
from protoseg.data.lists import read_entries
from protoseg.errors import DataError

SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]


def annotate(
    source: Any, image: str, *shapes: tuple[str, Any], size: tuple[int, int] | None = (12, 20)
) -> None:
    """A labelme file beside an image."""
    value: dict[str, Any] = {
        "imagePath": image.rpartition("/")[2], "imageData": None,
        "shapes": [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes],
    }  # fmt: skip
    if size is not None:
        value["imageHeight"], value["imageWidth"] = size
    source.json(image.rpartition(".")[0] + ".json", value)


@pytest.fixture
def small(source: Any) -> Any:
    """Four annotated images with two classes and two without annotation."""
    for i in range(6):
        source.image(f"images/{i}.png")
        if i < 4:
            annotate(source, f"images/{i}.png", ("b", SQUARE), ("a", [[8, 2], [15, 2], [15, 9], [8, 9]]))
    return source


# --- formats -----------------------------------------------------------------------------------


def test_the_format_is_found_or_named(small: Any, converted: Any) -> None:
    assert converted().result.reason == "images/0.json holds shapes and imagePath"
    small.text("annotations.xml", "<annotations><version>1.1</version></annotations>")
    with pytest.raises(
        DataError, match=r"several formats fit: cvat \(annotations.xml .*\); labelme .*--format cvat or"
    ):
        converted(out="x")
    assert converted(out="y", format="labelme").result.counts["labeled"] == 3


def test_an_unknown_format_lists_the_known_ones(source: Any, converted: Any) -> None:
    source.image("0.png")
    with pytest.raises(
        DataError, match=r"is of no known format .1 files.*coco: COCO JSON.*docs/data.md"
    ) as error:
        converted()
    assert all(name in str(error.value) for name in FORMATS)
    source.text("a.zip", "")
    with pytest.raises(DataError, match=r"is an archive: unpack it"):
        converted("a.zip")
    with pytest.raises(DataError, match=r"nowhere not found"):
        converted("nowhere")


def test_damaged_json_is_named_with_its_line(source: Any, converted: Any) -> None:
    source.image("0.png")
    source.text("ann.json", '{\n"images": [],\n"annotations": [,\n')
    for place in ("", "ann.json"):
        with pytest.raises(DataError, match=r"ann.json, line 3: damaged JSON"):
            converted(place)
    source.file("ann.json").write_bytes(b'{"a":\n"\xff"}')
    with pytest.raises(DataError, match=r"ann.json, line 2: not UTF-8"):
        converted()
    source.text("ann.json", "[" * 100_000)
    with pytest.raises(DataError, match=r"nested too deeply"):
        converted()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_refuses_a_folder_of_something_else(source: Any, converted: Any, name: str) -> None:
    source.image("images/0.png")
    source.json("a.json", {"x": [1]})
    with pytest.raises(DataError):
        converted(format=name, classes=["a"])
    assert not (source.root.parent / "out").exists()


@pytest.mark.parametrize("value", [[], 5, None, [1], {"shapes": [3], "imagePath": "0.png"},
                                   {"shapes": [{"label": "a", "points": {}}], "imagePath": 4},
                                   {"images": [4], "annotations": [], "categories": [{}]},
                                   {"images": [], "annotations": ["x"], "categories": []},
                                   [{"id": 1, "data": 5, "annotations": []}],
                                   [{"id": 1, "data": {"image": "0.png"}, "annotations": [5]}],
                                   [{"id": 1, "data": {"image": "0.png"}, "annotations": [{"result": [5]}]}],
                                   [{"id": 1, "data": {}, "annotations": []}]])  # fmt: skip
def test_json_of_another_form_is_an_error_not_a_traceback(source: Any, converted: Any, value: Any) -> None:
    source.image("0.png")
    source.json("a.json", value)
    with pytest.raises(DataError):
        converted()


# --- images and names --------------------------------------------------------------------------


def test_missing_images_are_left_out_and_named(small: Any, converted: Any) -> None:
    (small.root / "images/2.png").unlink()
    result = converted()
    assert "left out: 1 images that are not there, as 2.png" in result.notes
    assert result.result.counts == {"labeled": 2, "unlabeled": 2, "val": 1, "test": 0}
    for path in (small.root / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"none of the 4 images .*as 0.png: give their folder with --images FOLDER"
    ):
        converted(out="x")


def test_images_of_another_folder(small: Any, converted: Any, tmp_path: Path) -> None:
    (small.root / "images").rename(tmp_path / "elsewhere")
    (small.root / "json").mkdir()
    for path in (tmp_path / "elsewhere").glob("*.json"):
        path.rename(small.root / "json" / path.name)
    result = converted(images=tmp_path / "elsewhere")
    assert result.result.counts["labeled"] == 3
    assert result.mask("0.png").any()
    with pytest.raises(DataError, match=r"is not a folder"):
        converted(out="x", images=tmp_path / "none")


def test_names_do_not_collide_and_spellings_agree(source: Any, converted: Any) -> None:
    decomposed = unicodedata.normalize("NFD", "été")
    for name in ("a/0.png", "b/0.png", "b/0.jpg", "a/two words.png", f"a/{decomposed}.PNG"):
        source.image(name)
    for place in ("a/0.png", "b/0.png", "a/two words.png"):
        annotate(source, place, ("x", SQUARE))
    source.json(
        "b/other.json",
        {"imagePath": "0.jpg", "shapes": [{"label": "x", "points": [[9, 2], [12, 2], [12, 9]]}]},
    )
    source.json("a/e.json", {"imagePath": "./Été.png", "shapes": [{"label": "x", "points": SQUARE}]})
    result = converted(val="1")
    masks = sorted(
        p.relative_to(result.out / "masks").as_posix() for p in (result.out / "masks").rglob("*.png")
    )
    assert masks == sorted(["a/0.png", "b/0.png", "b/0.jpg.png", "a/two words.png", f"a/{decomposed}.png"])
    config = DataConfig.model_validate({"kind": "files", **result.result.settings})
    found = [*read_entries(config, "labeled").entries, *read_entries(config, "val").entries]
    pairs = {e.image.relative_to(source.root).as_posix(): e.mask for e in found}
    assert pairs["b/0.jpg"] == result.out / "masks/b/0.jpg.png"
    assert result.mask("b/0.jpg.png")[1, 1] == 0
    assert result.mask("b/0.png")[1, 1] == 1


def test_names_that_differ_in_case_or_suffix_only(source: Any, converted: Any) -> None:
    source.text("data.yaml", "names: [x]")
    for name in ("a.png", "A.png", "b.png", "b.jpg", "c.png"):
        source.image(f"images/{name}")
        stem = name.rpartition(".")[0]
        source.text(f"labels/{stem}.txt", "0 0 0 1 0 1 1\n" if stem == "A" else "0 0 0 0.5 0 0.5 0.5\n")
    result = converted(val="1")
    assert "left out: 1 images whose name fits several files, as images/b" in result.notes
    large, small = (result.out / "masks/images" / name for name in ("A.png", "a.png.png"))
    assert (np.asarray(Image.open(large)) > 0).sum() > (np.asarray(Image.open(small)) > 0).sum()


def test_an_image_annotated_twice_is_an_error(source: Any, converted: Any) -> None:
    source.image("0.png")
    annotate(source, "0.png", ("x", SQUARE))
    source.json("again.json", {"imagePath": "0.png", "shapes": []})
    with pytest.raises(DataError, match=r"0.png is annotated twice, by 0.json and by again.json"):
        converted()


def test_files_that_are_not_read_are_named(small: Any, converted: Any) -> None:
    small.text("images/x.heic", "")
    small.text("images/.hidden.png", "")
    small.text("images/broken.png", "no")
    annotate(small, "images/broken.png", ("a", SQUARE))
    annotate(small, "images/3.png", ("a", SQUARE), size=(24, 40))
    result = converted()
    assert "left out: 1 files of a kind that is not read (*.heic), as images/x.heic" in result.notes
    assert "left out: 1 images that cannot be read, as images/broken.png: cannot identify" in result.notes
    assert (
        "1 images of another size than their annotation, as images/3.png: 40 x 24, the image 20 x 12"
        in result.notes
    )
    assert result.result.counts["labeled"] + result.result.counts["val"] == 3


# --- orientation -------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(1, 9))
def test_labels_turn_like_the_image(tag: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = tag
    assert (turn_upright(stored, tag) == np.asarray(ImageOps.exif_transpose(image))).all()


@pytest.mark.parametrize("tag", [1, 3, 6, 8])
@pytest.mark.parametrize("side", ["stored", "upright"])
def test_masks_match_turned_images(source: Any, converted: Any, tag: int, side: str) -> None:
    # an image with a bright square where the annotation is, in stored pixels
    for i in range(2):
        pixels = np.zeros((12, 20), np.uint8)
        pixels[1:5, 1:8] = 255
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.fromarray(pixels).save(source.file(f"{i}.png"), exif=exif)
        seen = pixels if side == "stored" else read_image(source.root / f"{i}.png", 1)[..., 0]
        rows, columns = np.nonzero(seen)
        y0, x0, y1, x1 = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
        annotate(source, f"{i}.png", ("x", [[int(v) for v in p] for p in points]), size=seen.shape)  # type: ignore[arg-type]
    # tag 3 does not change the size: only the user can know
    result = converted(orientation=side if tag == 3 else "auto")
    assert ((result.mask("0.png") == 1) == (read_image(source.root / "0.png", 1)[..., 0] > 0)).all()
    assert "turned images" not in result.notes


def test_orientation_that_cannot_be_known_is_warned_of(source: Any, converted: Any) -> None:
    for i, (tag, height, size) in enumerate(
        [(6, 20, (20, 20)), (3, 12, (12, 20)), (8, 12, None), (1, 12, None)]
    ):
        source.image(f"{i}.jpg", height=height, tag=tag)
        annotate(source, f"{i}.jpg", ("x", SQUARE), size=size)
    result = converted()
    assert "3 turned images (EXIF orientation) whose annotation may be" in result.notes
    assert result.mask("2.png").shape == (20, 12)
    assert (converted(out="stored", orientation="stored").mask("1.png")[7:11, 15:19] == 1).all()


def test_frames() -> None:
    frame = Frame((12, 20), 6)
    assert annotated_frame(frame, (20, 12), "auto") == ("upright", False)
    assert annotated_frame(frame, (12, 20), "auto") == ("stored", False)
    with pytest.raises(DataError, match=r"not the stored size"):
        annotated_frame(frame, (20, 12), "stored")


# --- classes -----------------------------------------------------------------------------------


def test_classes_are_numbered_as_told(small: Any, converted: Any) -> None:
    assert converted().result.table.names == ["background", "a", "b"]
    chosen = converted(out="chosen", classes=["b", "a", "c"])
    assert chosen.result.table.names == ["background", "b", "a", "c"]
    assert chosen.mask("images/0.png")[2, 2] == 1
    ignored = converted(out="ignored", ignore=["a"])
    assert ignored.result.table.names == ["background", "b"]
    assert ignored.mask("images/0.png")[3, 9] == 255
    with pytest.raises(DataError, match=r"--classes lacks classes of the source: b; add them"):
        converted(out="x", classes=["a"])
    assert converted(out="others", classes=["a"], others="ignore").mask("images/0.png")[2, 2] == 255
    assert converted(out="none", classes=["a"], others="background").mask("images/0.png")[2, 2] == 0
    # an image without any of the chosen classes shows that they are not there: it stays labelled
    annotate(small, "images/3.png", ("b", SQUARE))
    some = converted(out="some", classes=["a"], others="background", val="0")
    assert (some.list("labeled"), some.mask("images/3.png").any()) == ([f"{i}.png" for i in range(4)], False)
    annotate(small, "images/3.png", ("a", SQUARE))
    with pytest.raises(DataError, match=r"--ignore names z; the source has a, b"):
        converted(out="x", ignore=["z"])
    with pytest.raises(DataError, match=r"must differ"):
        converted(out="x", classes=["a", "a", "b"])


def test_a_background_class_of_the_source_is_the_background(source: Any, converted: Any) -> None:
    for i in range(2):
        source.image(f"{i}.png")
        annotate(source, f"{i}.png", ("a", [[0, 0], [20, 0], [20, 12], [0, 12]]), ("_background_", SQUARE))
    result = converted()
    assert result.result.table.names == ["background", "a"]
    mask = result.mask("0.png")
    assert (mask[1:5, 1:5] == 0).all()
    assert (mask == 0).sum() == 16


def test_order_of_overlaps(source: Any, converted: Any) -> None:
    whole = [[0, 0], [20, 0], [20, 12], [0, 12]]
    for i in range(2):
        source.image(f"{i}.png")
        annotate(source, f"{i}.png", ("a", SQUARE), ("b", whole))
    # labelme's file has an order: later shapes lie on top
    with pytest.raises(AssertionError):
        assert (converted().mask("0.png") == 1).any()
    assert (converted(out="area", order="area").mask("0.png") == 1).sum() == 16


def test_objects_without_pixels(source: Any, converted: Any) -> None:
    for i in range(3):
        source.image(f"{i}.png")
        annotate(source, f"{i}.png", ("a", [[-5, -5], [5, -5], [5, 5], [-5, 5]]), ("a", [[1, 1], [2, 2]]))
    annotate(source, "2.png", ("a", [[30, 30], [40, 30], [40, 40]]))
    result = converted(val="1")
    assert (result.mask("0.png") == 1).sum() == 25
    assert "2 outlines with fewer than 3 points, as 0.json, shape 2" in result.notes
    assert "1 objects that cover no pixel centre of their image, as 2.json, shape 1" in result.notes
    assert result.list("unlabeled") == ["2.png"]


# --- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["refer", "link", "copy"])
def test_lists_read_back(small: Any, converted: Any, place: str, tmp_path: Path) -> None:
    result = converted(out=f"sub/{place}", place=place)
    text = yaml.safe_load((result.out / "data.yaml").read_text())["data"]
    config = DataConfig.model_validate(text)
    found = {part: read_entries(config, part).entries for part in ("labeled", "unlabeled", "val")}  # type: ignore[arg-type]
    assert [len(found[part]) for part in found] == [3, 2, 1]
    images = sorted(e.image for part in found.values() for e in part)
    base = small.root / "images" if place == "refer" else result.out / "images/images"
    assert images == sorted(base / f"{i}.png" for i in range(6))
    assert {p.is_symlink() for p in images} == {place == "link"}
    for entry in found["labeled"]:
        assert entry.mask == result.out / f"masks/images/{entry.image.stem}.png"
    assert text["root"] == str(tmp_path if place == "refer" else result.out)
    assert (result.out / "classes.txt").read_text() == "background\na\nb\n"


def test_val_is_seeded_and_every_class_stays_labelled(source: Any, converted: Any) -> None:
    for i in range(12):
        source.image(f"{i:02}.png")
        annotate(source, f"{i:02}.png", ("rare" if i == 5 else "a", SQUARE))
    lists = {seed: converted(out=f"s{seed}", seed=seed, val="0.5").list("val") for seed in range(4)}
    assert len({tuple(names) for names in lists.values()}) > 1
    assert all(len(names) == 6 and "05.png" not in names for names in lists.values())
    assert converted(out="again", seed=1, val="0.5").list("val") == lists[1]
    nothing = converted(out="nothing", val="0")
    assert "val.txt" not in [p.name for p in nothing.out.iterdir()]
    assert "no validation list was made" in nothing.notes


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.frozensets(st.integers(0, 4), max_size=3), st.integers(0, 5)), min_size=1, max_size=30
    ),
    st.integers(0, 20),
    st.integers(0, 100),
)
def test_choice_of_val(items: list[tuple[frozenset[int], int]], count: int, seed: int) -> None:
    present, groups = [p for p, _ in items], [str(g) for _, g in items]
    chosen = choose_val(present, groups, count, seed)
    rest = [i for i in range(len(items)) if i not in chosen]
    assert not {groups[i] for i in chosen} & {groups[i] for i in rest}
    assert frozenset().union(*(present[i] for i in rest)) == frozenset().union(*present)
    assert chosen == choose_val(present, groups, count, seed)
    assert count or not chosen


def test_groups() -> None:
    names = [
        "a/x_jpg.rf.12ab.jpg",
        "a/x_jpg.rf.99cd.jpg",
        "a/y.jpg",
        "b/cam1_frame_0001.jpg",
        "b/cam2_frame_0001.jpg",
    ]
    groups, warning = group_names(names, "auto")
    assert (groups[0] == groups[1], len(set(groups)), warning) == (True, 4, "")
    assert group_names(names, "folder")[0] == ["a", "a", "a", "b", "b"]
    assert group_names(names, "none")[0] == names
    assert group_names(names[3:], r"cam(\d)")[0] == ["1", "2"]
    with pytest.raises(DataError, match=r"does not match a/x_jpg"):
        group_names(names, "cam")
    with pytest.raises(DataError, match=r"nor a regular expression"):
        group_names(names, "(")


def test_nothing_annotated_is_an_error(small: Any, converted: Any) -> None:
    for i in range(4):
        annotate(small, f"images/{i}.png")
    with pytest.raises(DataError, match=r"no annotation holds an object that can be drawn"):
        converted()


def test_parts_come_from_folders_not_from_images(small: Any, converted: Any) -> None:
    assert part_of("a/train/test_1.png") == "train"
    assert part_of("test-site/1.png") == part_of("val_1.png") == ""
    assert part_of("annotations/instances_val2017.json", file=True) == "val"
    assert part_of("data/validation-00000-of-00001-ab.parquet", file=True) == "val"
    assert part_of("valid/_annotations.coco.json", file=True) == "val"
    assert part_of("interval/medtest.json", file=True) == ""
    # a set that is one part only has none
    small.root.joinpath("images").rename(small.root / "test")
    assert converted().result.counts == {"labeled": 3, "unlabeled": 2, "val": 1, "test": 0}


def test_an_annotation_file_may_be_the_source(small: Any, converted: Any, tmp_path: Path) -> None:
    small.image("elsewhere/9.png")
    small.json("a/instances.json", {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
                        for i in range(2)],
    })  # fmt: skip
    result = converted("a/instances.json", out="source/result")
    assert result.result.counts == {"labeled": 1, "unlabeled": 4, "val": 1, "test": 0}
    again = converted("a/instances.json", out="source/result", overwrite=True, place="copy")
    assert again.result.counts == result.result.counts


# --- target ------------------------------------------------------------------------------------


def test_the_target_is_replaced_only_when_told(small: Any, converted: Any, tmp_path: Path) -> None:
    converted()
    first = (tmp_path / "out/val.txt").read_text()
    with pytest.raises(DataError, match=r"earlier conversion; add --overwrite"):
        converted(seed=3)
    assert (tmp_path / "out/val.txt").read_text() == first
    (tmp_path / "out/old.txt").write_text("x")
    converted(overwrite=True)
    assert not (tmp_path / "out/old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").write_text("x")
    with pytest.raises(DataError, match=r"is there and not empty"):
        converted(out="mine", overwrite=True)
    for out in ("source/out", "source", "."):
        with pytest.raises(DataError, match=r"lie within one another"):
            converted(out=out)


def test_an_error_leaves_nothing_behind_and_the_earlier_result(
    small: Any, converted: Any, tmp_path: Path
) -> None:
    converted()
    before = sorted(tmp_path.iterdir())
    small.json("images/3.json", {"imagePath": "3.png", "shapes": [
        {"label": "a", "shape_type": "mask", "points": [[0, 0], [4, 4]], "mask": "iVBO"}]})  # fmt: skip
    with pytest.raises(DataError, match=r"3.json"):
        converted(overwrite=True)
    with pytest.raises(DataError, match=r"3.json"):
        converted(out="other")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out/val.txt").exists()


# --- command -----------------------------------------------------------------------------------


def test_the_command_prints_what_it_did(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(small.root), "-o", str(tmp_path / "out"), "--val", "25%", "--classes", "b,a"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "format: labelme (images/0.json holds shapes and imagePath)" in out
    assert "images: 6, labeled 3, unlabeled 2, val 1" in out
    assert re.search(r"^  1  b +4 +6.7%$", out, re.MULTILINE)
    section = out[out.index("for the configuration:\n") :].partition("\n")[2]
    assert section == (tmp_path / "out/data.yaml").read_text()
    DataConfig.model_validate(yaml.safe_load(section)["data"])
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main([*arguments, "--overwrite", "--seed", "-1"]) == 1
    assert "--seed must be at least 0" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--val", "x"]) == 1
    assert "--val 'x'" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_converted_is_checked_and_trained(source: Any, tmp_path: Path, run_module: Any) -> None:
    for i in range(8):
        source.image(f"images/{i}.png", 64, 48)
        if i < 5:
            shift = [[x * 6 + i, y * 6] for x, y in SQUARE]
            annotate(source, f"images/{i}.png", ("crack", shift), size=(48, 64))
    done = run_module("protoseg.convert", source.root, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout[done.stdout.index("data:\n") :])
    config["model"] = {"encoder": "resnet10t"}
    config["views"] = {"crop": [32, 32]}
    config["train"] = {
        "max_steps": 2,
        "warmup_steps": 1,
        "eval_every": 2,
        "batch_size": 2,
    }
    config["run"] = {"dir": str(tmp_path / "runs"), "name": "short"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    checked = run_module("protoseg.check", "--config", tmp_path / "config.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "the data is fine: 0 kind(s) of error" in checked.stdout
    trained = run_module("protoseg.train", "--config", tmp_path / "config.yaml")
    assert trained.returncode == 0, trained.stderr
