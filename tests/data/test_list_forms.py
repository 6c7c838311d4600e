"""Lists as people's tools write them: read, or the cause is named with the line; each cure cures."""

from __future__ import annotations

import importlib.util
import json
import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from file_lists import files_config as config
from file_lists import touch
from PIL import Image

from protoseg.data.find import read_list
from protoseg.data.lists import EntryList, read_entries, scan_entries
from protoseg.errors import DataError

PAIRS = [(f"images/im{n}.png", f"masks/im{n}.png") for n in range(3)]
PLAIN = "".join(f"{image} {mask}\n" for image, mask in PAIRS)


def read(root: Path, text: str | bytes, **keys: object) -> EntryList:
    (root / "l.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_entries(config(root, **keys), "labeled")


def found(root: Path, listed: EntryList) -> list[tuple[str, str]]:
    return [
        (e.image.relative_to(root).as_posix(), e.mask.relative_to(root).as_posix() if e.mask else "")
        for e in listed.entries
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path, *(name for pair in PAIRS for name in pair))
    return tmp_path


def joined(separator: str, header: str = "", quote: str = "") -> str:
    lines = [separator.join(f"{quote}{name}{quote}" for name in pair) for pair in PAIRS]
    return "\n".join(([header] if header else []) + lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.encode("utf-16"), PLAIN.encode("utf-16-le"), PLAIN.encode("utf-16-be"), PLAIN.encode("utf-32"),
        PLAIN.encode("utf-8-sig"), b"\xef\xbb\xbf" + PLAIN.encode("utf-8-sig"),
        joined(","), joined(", "), joined(";"), joined(",", quote='"'), joined(" ", quote='"'),
        joined("\t", quote='"'), joined(" ", quote="'"), joined(",", "image,mask"),
        joined(", ", "Image, Mask"),
        joined("\t", "filename\tlabel"), joined(";", "image_path;mask_path"), joined(" ", "image mask"),
        PLAIN.replace("/", "\\"), PLAIN.replace("\n", "   \n"), PLAIN.replace("\n", "\r"),
        "# made by hand\n" + PLAIN + "#images/gone.png masks/gone.png\n",
        "sep=;\n" + joined(";", "image;mask"),
        "mask,width,image\n" + "".join(f"{m},640,{i}\n" for i, m in PAIRS),
        ",image,mask\n" + "".join(f"{n},{i},{m}\n" for n, (i, m) in enumerate(PAIRS)),
        "./" + PLAIN.replace("\n", "\n./").removesuffix("./"),
        "C:\\data\\ROOT\\" + PLAIN.replace("\n", "\nC:\\data\\ROOT\\").replace(" ", "\tC:\\data\\ROOT\\")
        .replace("/", "\\").removesuffix("C:\\data\\ROOT\\"),
    ],
)  # fmt: skip
def test_every_form_reads_the_same(root: Path, text: str | bytes) -> None:
    if isinstance(text, str):
        text = text.replace("ROOT", root.name)
    assert found(root, read(root, text)) == PAIRS


def test_a_name_with_the_separator_in_it_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "images/a,b.png", "masks/a,b.png", "#1.png", "m/#1.png", 'say "a".png')
    text = "images/a,b.png masks/a,b.png\n#1.png\tm/#1.png\n"
    assert found(tmp_path, read(tmp_path, text)) == [
        ("images/a,b.png", "masks/a,b.png"), ("#1.png", "m/#1.png"),
    ]  # fmt: skip
    (tmp_path / "u.txt").write_text('say "a".png\n')
    assert len(read_entries(config(tmp_path, unlabeled="u.txt"), "unlabeled").entries) == 1


def test_columns_that_are_not_read_are_named(root: Path) -> None:
    text = "image,mask,width\n" + "".join(f"{i},{m},640\n" for i, m in PAIRS)
    assert "columns that are not read: width" in read(root, text).warnings[0]
    (root / "l.txt").write_text("image,mask\nimages/im0.png,\n,masks/im1.png\n")
    _, problems = scan_entries(config(root), "labeled")
    assert "line 2: images/im0.png has no mask" in problems[0]
    assert "line 3: ',masks/im1.png' has nothing in column 1" in problems[1]


def test_parts_in_one_table_are_refused_and_a_list_for_each_is_read(root: Path) -> None:
    rows = [f"{i},{m},{part}\n" for (i, m), part in zip(PAIRS, ("train", "val", "train"), strict=True)]
    with pytest.raises(DataError, match=r"line 1: column 'split' divides .*: write a list for each part"):
        read(root, "image,mask,split\n" + "".join(rows))
    assert found(root, read(root, "image,mask\n" + joined(",").splitlines()[0])) == PAIRS[:1]


def test_an_image_that_is_its_own_mask(root: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: images/im0\.png is named as image and as its own mask"):
        read(root, "images/im0.png images/im0.png\n")


def test_settings_are_found_in_another_unicode_form(tmp_path: Path) -> None:
    written, named = (unicodedata.normalize(form, "été") for form in ("NFD", "NFC"))
    touch(tmp_path, f"{written}/images/a.png", f"{written}/masks/a.png")
    pair = {"images": f"{named}/images", "masks": f"{named}/masks"}
    assert len(read_entries(config(tmp_path, labeled=pair), "labeled").entries) == 1


@pytest.mark.parametrize("data", [b"PK\x03\x04\x14\0\x06\0\xff\xfe", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_text_is_called_that(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read: it is not a text file"):
        read(tmp_path, data)


def test_three_columns_without_a_header(root: Path) -> None:
    with pytest.raises(DataError, match="line 1: 3 columns split by commas, expected image and mask"):
        read(root, "images/im0.png,masks/im0.png,3\n")


def test_other_encodings_name_the_line_and_saving_as_utf_8_cures(tmp_path: Path) -> None:
    touch(tmp_path, "images/été.png", "masks/été.png", "images/a.png", "masks/a.png")
    text = "images/a.png masks/a.png\nimages/été.png masks/été.png\n"
    with pytest.raises(DataError, match=r"line 2 is not UTF-8 \(byte 0xe9\); save it as UTF-8"):
        read(tmp_path, text.encode("cp1252"))
    assert len(read(tmp_path, text.encode("utf-8")).entries) == 2


def test_a_drive_that_is_not_here(root: Path) -> None:
    line = "D:\\my set\\old\\images\\im0.png\tD:\\my set\\old\\masks\\im0.png\n"
    with pytest.raises(DataError) as info:
        read(root, line)
    assert "a path of a Windows drive: take D:\\my set\\old\\ off, to leave images/im0.png" in str(info.value)
    assert found(root, read(root, line.replace("D:\\my set\\old\\", ""))) == PAIRS[:1]
    with pytest.raises(DataError, match=r"Windows drive: write lines relative to data\.root"):
        read(root, "D:\\x\\gone.png\tD:\\x\\gone.png\n")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms(tmp_path: Path, forms: tuple[str, str]) -> None:
    written, listed = (unicodedata.normalize(form, "images/été/noël.png") for form in forms)
    touch(tmp_path, written, written.replace("images", "masks"))
    plain = read(tmp_path, f"{listed} {listed.replace('images', 'masks')}\n")
    assert plain.warnings == ()
    assert plain.entries[0].image == tmp_path / written, "the name on the disk"
    derived = read(tmp_path, listed)
    assert derived.entries == plain.entries
    same = read(tmp_path, written).sha256
    assert same == plain.sha256, "one set, one hash"


def test_letter_case(tmp_path: Path) -> None:
    touch(tmp_path, "images/im0.PNG", "masks/im0.PNG", "images/B.jpg", "masks/b.png")
    keys = {"image_dir": "images", "mask_dir": "masks"}
    assert found(tmp_path, read(tmp_path, "im0\n", **keys)) == [("images/im0.PNG", "masks/im0.PNG")]
    assert found(tmp_path, read(tmp_path, "images/im0.PNG\n")) == [("images/im0.PNG", "masks/im0.PNG")]
    odd = read(tmp_path, "images/b.jpg masks/B.png\n")
    assert found(tmp_path, odd) == [("images/B.jpg", "masks/b.png")]
    assert "2 name(s) have another letter case on the disk, as images/b.jpg: B.jpg" in odd.warnings[0]
    touch(tmp_path, "images/C.jpg", "images/c.JPG")
    with pytest.raises(DataError, match=r"images/c\.jpg not found"):
        read(tmp_path, "images/c.jpg masks/b.png")  # two could be meant


def test_lists_of_other_commands_are_read_alike(root: Path) -> None:
    path = root / "pool.csv"
    path.write_bytes(("image,mask\r\n" + joined(",")).encode("utf-16"))
    images, problems = read_list(path, [root], None)
    assert ([item.name for item in images], problems) == ([image for image, _ in PAIRS], [])


def draw(path: Path, size: tuple[int, int] = (16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


def run_the_cure(text: str, out: Path) -> None:
    """Run the command that a message names, into another folder."""
    if importlib.util.find_spec("protoseg.convert") is None:
        pytest.skip("protoseg.convert is not here")
    command = shlex.split(text.partition("python -m protoseg.convert ")[2].splitlines()[0])
    from protoseg.convert.__main__ import main

    arguments = [str(out) if word == "DIR" else word for word in command]
    assert main(arguments) == 0


def polygon_set(folder: Path, tool: str) -> None:
    points = [[1, 1], [9, 1], [9, 9], [1, 9]]
    for number in range(4):
        draw(folder / f"im{number}.png")
        if tool == "labelme":
            shape = {
                "label": "crack",
                "points": points,
                "shape_type": "polygon",
                "group_id": None,
                "flags": {},
            }
            content = {
                "version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"im{number}.png",
                "imageData": None, "imageHeight": 12, "imageWidth": 16,
            }  # fmt: skip
            (folder / f"im{number}.json").write_text(json.dumps(content))
    if tool == "coco":
        flat = [value for point in points for value in point]
        content = {
            "images": [{"id": n, "file_name": f"im{n}.png", "height": 12, "width": 16} for n in range(4)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "segmentation": [flat], "area": 64, "iscrowd": 0,
                 "bbox": [1, 1, 8, 8]} for n in range(4)
            ],
            "categories": [{"id": 1, "name": "crack"}],
        }  # fmt: skip
        (folder / "ann.json").write_text(json.dumps(content))


def test_annotations_given_as_a_list(tmp_path: Path) -> None:
    polygon_set(tmp_path / "set", "coco")
    with pytest.raises(
        DataError, match=r"ann\.json is JSON, not a list of images; a training needs masks"
    ) as info:
        read_entries(config(tmp_path / "set", labeled="ann.json"), "labeled")
    (tmp_path / "set" / "ann.xml").write_text("<annotations></annotations>")
    with pytest.raises(DataError, match=r"ann\.xml is XML, not a list of images; a training needs masks"):
        read_entries(config(tmp_path / "set", labeled="ann.xml"), "labeled")
    (tmp_path / "set" / "ann.xml").unlink()
    run_the_cure(str(info.value), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.png"))


def test_annotations_in_the_folder_of_masks(tmp_path: Path) -> None:
    polygon_set(tmp_path / "set", "labelme")
    with pytest.raises(DataError, match=r"holds annotations, as im0\.json.* a training needs masks") as info:
        read_entries(config(tmp_path, labeled={"images": "set", "masks": "set"}), "labeled")
    run_the_cure(str(info.value), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.png"))
    for number in range(4):
        draw(tmp_path / "images" / f"im{number}.png")
        (tmp_path / "set" / f"im{number}.png").unlink()
    with pytest.raises(DataError, match=r"has no file ending in .*; 4 file\(s\) .* left out: 4 \.json"):
        read_entries(config(tmp_path, labeled={"images": "images", "masks": "set"}), "labeled")
    with pytest.raises(DataError) as info:
        read_entries(config(tmp_path, labeled={"images": "images", "masks": "set"}), "labeled")
    assert f"--images {tmp_path / 'images'} -o DIR" in str(info.value)
    run_the_cure(str(info.value), tmp_path / "second")
    assert list((tmp_path / "second").rglob("*.png"))
    draw(tmp_path / "set" / "im3.png")
    _, problems = scan_entries(config(tmp_path, labeled={"images": "images", "masks": "set"}), "labeled")
    assert [("only im0.json; a training needs masks" in text) for text in problems] == [True, False, False]
