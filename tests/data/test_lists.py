from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_lists import files_config, touch

from protoseg.config.data import DataConfig
from protoseg.data.lists import KNOWN_LISTS, EntryList, data_root, read_entries, scan_entries
from protoseg.errors import DataError

CLASSES = ["a", "b"]


def config(root: Path, **keys: object) -> DataConfig:
    return files_config(root, **{"labeled": "labeled.txt", "val": "labeled.txt"} | keys)


def read(root: Path, text: str | bytes, split: str = "labeled", **keys: object) -> EntryList:
    data = text.encode() if isinstance(text, str) else text
    (root / f"{split}.txt").write_bytes(data)
    return read_entries(config(root, **{split: f"{split}.txt"}, **keys), split)  # type: ignore[arg-type]


def relative(root: Path, found: EntryList) -> list[tuple[str, str | None]]:
    return [
        (
            entry.image.relative_to(root).as_posix(),
            None if entry.mask is None else entry.mask.relative_to(root).as_posix(),
        )
        for entry in found.entries
    ]


VOC = "2007_000733"
VOC_PAIR = (f"JPEGImages/{VOC}.jpg", f"SegmentationClass/{VOC}.png")
CITY = "leftImg8bit/train/hamburg/hamburg_000000_080169_leftImg8bit.png"
CITY_MASK = "gtFine/train/hamburg/hamburg_000000_080169_gtFine_labelTrainIds.png"
CPS = (
    "images/train/jena_000078_000019.png",
    "segmentation/train/jena_000078_000019_gtFine.png",
)


@pytest.mark.parametrize(
    ("line", "pair", "family"),
    [
        (" ".join(VOC_PAIR), VOC_PAIR, "space pairs"),
        ("   ".join(VOC_PAIR), VOC_PAIR, "space pairs"),
        ("\t".join(VOC_PAIR), VOC_PAIR, "tab pairs"),
        (VOC, VOC_PAIR, "VOC ids"),
        (f"/{VOC_PAIR[0]} /{VOC_PAIR[1]}", VOC_PAIR, "space pairs, leading slash"),
        (f"/{CPS[0]}\t/{CPS[1]}", CPS, "tab pairs, leading slash"),
        (CITY, (CITY, CITY_MASK), "Cityscapes images"),
        (f"{CITY} {CITY_MASK}", (CITY, CITY_MASK), "space pairs"),
        (Path(CITY).stem, (CITY, CITY_MASK), "bare stems"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "", "\r\n", "\r\n\r\n", "\n\n  \n"])
def test_every_published_line_format(
    tmp_path: Path, line: str, pair: tuple[str, str], family: str, ending: str
) -> None:
    touch(tmp_path, *VOC_PAIR, *CPS, CITY, CITY_MASK)
    found = read(tmp_path, line + ending)
    assert relative(tmp_path, found) == [pair]
    assert found.family == family


def test_u2pl_cityscapes_slice_names_the_same_mask(tmp_path: Path) -> None:
    touch(tmp_path, CITY, CITY_MASK)
    (_, mask) = relative(tmp_path, read(tmp_path, CITY))[0]
    assert mask == "gtFine/" + CITY[12:-15] + "gtFine_labelTrainIds.png"


def test_voc_ids_prefer_the_augmented_masks(tmp_path: Path) -> None:
    touch(tmp_path, *VOC_PAIR, f"SegmentationClassAug/{VOC}.png")
    assert relative(tmp_path, read(tmp_path, VOC))[0][1] == f"SegmentationClassAug/{VOC}.png"


def test_mask_dir_beats_the_voc_rule(tmp_path: Path) -> None:
    touch(tmp_path, f"pics/{VOC}.png", *VOC_PAIR, f"labels/{VOC}.png")
    found = read(tmp_path, VOC, image_dir="pics", mask_dir="labels")
    assert relative(tmp_path, found) == [(f"pics/{VOC}.png", f"labels/{VOC}.png")]


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png")
    text = b"\xef\xbb\xbfimages/a.jpg masks/a.png\r\nimages/b.jpg masks/b.png"
    assert len(read(tmp_path, text).entries) == 2


@pytest.mark.parametrize("none", ["None", "-", "none", "null"])
def test_unlabeled_lines_need_no_mask(tmp_path: Path, none: str) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    text = f"images/a.jpg {none}\nimages/b.jpg\nimages/c.jpg masks/never_made.png\n"
    found = read(tmp_path, text, "unlabeled")
    assert relative(tmp_path, found) == [(f"images/{n}.jpg", None) for n in "abc"]
    assert found.family == "images with None + images + space pairs"


def test_unlabeled_ids_and_cityscapes_lines_need_no_mask(tmp_path: Path) -> None:
    touch(tmp_path, VOC_PAIR[0], CITY)
    found = read(tmp_path, f"{VOC}\n{CITY}", "unlabeled")
    assert relative(tmp_path, found) == [(VOC_PAIR[0], None), (CITY, None)]


def test_labeled_line_with_none_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    with pytest.raises(DataError, match=r"labeled\.txt, line 1: .*has no mask \(None\)"):
        read(tmp_path, "images/a.jpg None")


@pytest.mark.parametrize("folder", ["masks", "annotations", "labels", "SegmentationClass"])
def test_mask_in_a_parallel_folder(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "ade/images/train/x.jpg", f"ade/{folder}/train/x.png")
    found = read(tmp_path, "ade/images/train/x.jpg")
    assert relative(tmp_path, found)[0][1] == f"ade/{folder}/train/x.png"


def test_list_written_from_above_root(tmp_path: Path) -> None:
    root = tmp_path / "ade"
    touch(root, "images/training/x.jpg", "annotations/training/x.png")
    found = read(root, "data/ade/images/training/x.jpg")
    assert relative(root, found) == [("images/training/x.jpg", "annotations/training/x.png")]


def test_absolute_paths(tmp_path: Path) -> None:
    other = tmp_path / "other"
    touch(other, "i/a.png", "m/a.png")
    root = tmp_path / "root"
    root.mkdir()
    (entry,) = read(root, f"{other}/i/a.png {other}/m/a.png").entries
    assert (entry.image, entry.mask) == (other / "i/a.png", other / "m/a.png")


def test_names_with_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "my images/a 1.jpg", "my masks/a 1.png", "my images/b.jpg", "my masks/b.png")
    text = "my images/a 1.jpg\tmy masks/a 1.png\nmy images/b.jpg my masks/b.png\n"
    expected = [("my images/a 1.jpg", "my masks/a 1.png"), ("my images/b.jpg", "my masks/b.png")]
    assert relative(tmp_path, read(tmp_path, text)) == expected
    found = read(tmp_path, "my images/b.jpg\nmy images/a 1.jpg None", "unlabeled")
    assert [image for image, _ in relative(tmp_path, found)] == ["my images/b.jpg", "my images/a 1.jpg"]


def test_ambiguous_spaces_ask_for_a_tab(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png a.png", "a.png b.png")
    with pytest.raises(DataError, match=r"several ways .*split image and mask by a tab"):
        read(tmp_path, "a.png b.png a.png")


def test_missing_file_names_line_and_places(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png")
    text = "images/a.jpg masks/a.png\n\nimages/gone.jpg masks/gone.png\nimages/a.jpg masks/lost.png\n"
    with pytest.raises(DataError) as info:
        read(tmp_path, text)
    message = str(info.value)
    assert "labeled.txt, line 3: image images/gone.jpg not found" in message
    assert "tried images/gone.jpg" in message
    assert "2 such problems" in message
    found, problems = scan_entries(config(tmp_path), "labeled")
    assert len(found.entries) == 1
    assert "line 4: mask masks/lost.png not found" in problems[1]


def test_cityscapes_without_train_ids_says_what_to_set(tmp_path: Path) -> None:
    ids = CITY_MASK.replace("labelTrainIds", "labelIds")
    touch(tmp_path, CITY, ids)
    with pytest.raises(
        DataError, match=r"labelIds\.png is there: set data\.label_map=cityscapes and data\.classes=null"
    ):
        read(tmp_path, CITY)
    cure = {"label_map": "cityscapes", "classes": None}
    assert relative(tmp_path, read(tmp_path, CITY, **cure)) == [(CITY, ids)]
    # both are there: the map is for label ids only
    touch(tmp_path, CITY_MASK)
    assert relative(tmp_path, read(tmp_path, CITY, **cure)) == [(CITY, ids)]
    assert relative(tmp_path, read(tmp_path, CITY)) == [(CITY, CITY_MASK)]
    pair = {"images": "leftImg8bit/train", "masks": "gtFine/train"}
    found = read_entries(config(tmp_path, labeled=pair, **cure), "labeled")
    assert relative(tmp_path, found) == [(CITY, ids)]


@pytest.mark.parametrize("text", ["", "\n\r\n \n"])
def test_empty_list(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="is empty; it needs one image a line"):
        read(tmp_path, text)


def test_binary_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")


def test_three_tab_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 columns split by tabs"):
        read(tmp_path, "a\tb\tc")


def test_missing_list_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError) as info:
        read_entries(config(tmp_path, labeled="lists/no.txt"), "labeled")
    assert "data.labeled=lists/no.txt not found" in str(info.value)
    assert str(tmp_path / "lists" / "no.txt") in str(info.value)


def test_folder_pair_by_stem(tmp_path: Path) -> None:
    touch(tmp_path, "i/b.jpg", "i/sub/a.jpeg", "m/b.png", "m/sub/a.png")
    pair = {"images": "i", "masks": "m"}
    found = read_entries(config(tmp_path, labeled=pair), "labeled")
    assert relative(tmp_path, found) == [("i/b.jpg", "m/b.png"), ("i/sub/a.jpeg", "m/sub/a.png")]
    assert found.family == "folder pair"
    assert found.warnings == ()


def test_folder_pair_faults(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "i/b.jpg", "m/a.png", "m/c.png")
    pair = {"images": "i", "masks": "m"}
    found, problems = scan_entries(config(tmp_path, labeled=pair), "labeled")
    assert len(found.entries) == 1
    assert len(problems) == 1
    assert "b.jpg has no mask b.png" in problems[0]
    assert "1 mask(s) have no image" in found.warnings[0]
    touch(tmp_path, "i/a.png")
    with pytest.raises(DataError, match="same stem"):
        read_entries(config(tmp_path, labeled=pair), "labeled")


def test_cityscapes_folder_pair(tmp_path: Path) -> None:
    extra = CITY_MASK.replace("labelTrainIds", "color")
    touch(tmp_path, CITY, CITY_MASK, extra)
    pair = {"images": "leftImg8bit/train", "masks": "gtFine/train"}
    found = read_entries(config(tmp_path, labeled=pair), "labeled")
    assert relative(tmp_path, found) == [(CITY, CITY_MASK)]


def test_unlabeled_folder_and_null(tmp_path: Path) -> None:
    touch(tmp_path, "u/b.png", "u/a b.jpg")
    found = read_entries(config(tmp_path, unlabeled="u"), "unlabeled")
    assert relative(tmp_path, found) == [("u/a b.jpg", None), ("u/b.png", None)]
    pair = read_entries(config(tmp_path, unlabeled={"images": "u"}), "unlabeled")
    assert pair.entries == found.entries
    assert read_entries(config(tmp_path), "unlabeled").entries == ()


def test_labeled_folder_needs_masks(tmp_path: Path) -> None:
    touch(tmp_path, "u/b.png")
    with pytest.raises(DataError, match=r"data\.labeled\.masks"):
        read_entries(config(tmp_path, labeled="u"), "labeled")
    with pytest.raises(DataError, match=r"data\.labeled\.masks is not set"):
        read_entries(config(tmp_path, labeled={"images": "u"}), "labeled")


def test_hash_is_that_of_the_sorted_stems_in_any_format(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{d}/{VOC[:-1]}{n}.{e}" for n in "12" for d, e in
                      [("JPEGImages", "jpg"), ("SegmentationClass", "png")]))  # fmt: skip
    one, two = f"{VOC[:-1]}1", f"{VOC[:-1]}2"
    expected = hashlib.sha256(f"{one}\n{two}".encode()).hexdigest()
    ids = read(tmp_path, f"{two}\n{one}")
    pairs = read(tmp_path, "".join(f"/JPEGImages/{i}.jpg /SegmentationClass/{i}.png\r\n" for i in (one, two)))
    assert ids.sha256 == pairs.sha256 == expected
    assert ids.known_name is None
    assert [entry.image.stem for entry in ids.entries] == [two, one]


def test_known_lists_are_named_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *VOC_PAIR)
    digest = hashlib.sha256(VOC.encode()).hexdigest()
    monkeypatch.setitem(KNOWN_LISTS, digest, "one image")
    assert read(tmp_path, VOC).known_name == "one image"


def test_repeated_images_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    found = read(tmp_path, "images/a.jpg\nimages/a.jpg", "unlabeled")
    assert "1 image(s) are listed more than once" in found.warnings[0]


def test_root_expands_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camvid").mkdir()
    monkeypatch.setenv("PROTOSEG_DATA", str(tmp_path))
    assert data_root(config(Path("$PROTOSEG_DATA/camvid"))) == tmp_path / "camvid"
    assert data_root(config(Path("${PROTOSEG_DATA}/camvid"))) == tmp_path / "camvid"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(config(Path("~/camvid"))) == tmp_path / "camvid"


def test_protoseg_data_has_a_default_beside_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (tmp_path / "shared" / "data" / "camvid").mkdir(parents=True)
    monkeypatch.delenv("PROTOSEG_DATA", raising=False)
    monkeypatch.setattr("protoseg.data.storage.PROJECT_ROOT", project)
    assert data_root(config(Path("$PROTOSEG_DATA/camvid"))) == tmp_path / "shared/data/camvid"


def test_unset_variable_and_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(DataError, match="environment variable NOT_SET_ANYWHERE, which is not set"):
        data_root(config(Path("$NOT_SET_ANYWHERE/x")))
    with pytest.raises(DataError, match="is not a folder"):
        data_root(config(tmp_path / "gone"))


def test_list_beside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, project = tmp_path / "root", tmp_path / "project"
    touch(root, "images/a.jpg")
    project.mkdir()
    (project / "u.txt").write_text("images/a.jpg\n")
    monkeypatch.chdir(project)
    assert len(read_entries(config(root, unlabeled="u.txt"), "unlabeled").entries) == 1
