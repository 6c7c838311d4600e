"""Class files of annotation tools: read by their form, or refused with what was found; each cure cures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from protoseg.config.data import DataConfig
from protoseg.config.load import load_config
from protoseg.data.class_files import read_class_file
from protoseg.data.classes import read_classes, read_labelmap
from protoseg.data.palette import default_palette
from protoseg.errors import DataError

NAMES = ["background", "crack", "hole"]
COLORS = {"background": (0, 0, 0), "crack": (255, 0, 0), "hole": (0, 0, 255)}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "background\ncrack\nhole\n"),
        ("classes.txt", "# ours\nbackground\r\n\r\ncrack\r\nhole"),
        ("classes.txt", "background\ncrack\nhole\n".encode("utf-16")),
        ("classes.txt", '"background"\n"crack"\n"hole"\n'),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, crack\n2, hole\n"),
        ("_classes.csv", "Pixel Value, Class\n2, hole\n0, background\n1, crack\n"),
        ("classes.csv", "name\nbackground\ncrack\nhole\n"),
        ("objectInfo.txt", "Idx\tRatio\tName\n0\t0.1\tbackground\n1\t0.2\tcrack\n2\t0.3\thole\n"),
        ("a.tsv", "id\tlabel\n0\tbackground\n1\tcrack\n2\thole\n"),
        ("a.csv", "id;name\n0;background\n1;crack\n2;hole\n"),
        ("a.csv", "label,name\n1,crack\n0,background\n2,hole\n"),
        ("a.csv", "nr;class\n1;crack\n0;background\n2;hole\n"),
        ("a.json", json.dumps([{"label": 2 - i, "name": n} for i, n in enumerate(NAMES[::-1])])),
        ("a.txt", "0 background\n1 crack\n2 hole\n"),
        ("a.txt", "0: background\n1: crack\n2: hole\n"),
        ("a.csv", "0,background\n1,crack\n2,hole\n"),
        ("a.json", json.dumps(NAMES)),
        ("a.json", json.dumps({"2": "hole", "0": "background", "1": "crack"})),
        ("a.json", json.dumps({"hole": 2, "background": 0, "crack": 1})),
        ("a.json", json.dumps({"id2label": {"0": "background", "1": "crack", "2": "hole"}})),
        ("a.txt", json.dumps({"categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)]})),
        ("a.yaml", "- background\n- crack\n- hole\n"),
        ("data.yaml", "path: x\nnames: [background, crack, hole]\nnc: 3\n"),
        ("data.yaml", "train: x\nnames:\n  0: background\n  1: crack\n  2: hole\n"),
        ("a.txt", "- background\n- crack\n- hole\n"),
    ],
)
def test_names(tmp_path: Path, name: str, text: str | bytes) -> None:
    table = read_class_file(write(tmp_path, name, text))
    assert (table.names, table.colors) == (NAMES, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncrack,255,0,0\nhole,0,0,255\n"),
        ("class_dict.csv", "name, red, green, blue\nbackground, 0, 0, 0\ncrack, 255, 0, 0\nhole, 0,0,255\n"),
        ("a.txt", "background,0,0,0\ncrack,255,0,0\nhole,0,0,255\n"),
        ("a.csv", 'class,color\nbackground,"0,0,0"\ncrack,"(255, 0, 0)"\nhole,#0000ff\n'),
        ("a.json", json.dumps([{"name": n, "color": list(c)} for n, c in COLORS.items()])),
        ("a.json", json.dumps([{"title": n, "color": f"#{bytes(c).hex()}"} for n, c in COLORS.items()])),
        ("a.json", json.dumps({name: list(color) for name, color in COLORS.items()})),
        ("labelmap.txt", "# label:color_rgb:parts\nbackground:0,0,0::\ncrack:255,0,0::\nhole:0,0,255::\n"),
    ],
)  # fmt: skip
def test_colours_are_taken_where_they_are_given(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, text)
    base = {"kind": "files", "root": str(tmp_path), "labeled": "l", "val": "v", "classes": name}
    assert {c.name: c.color for c in read_classes(DataConfig.model_validate(base))} == COLORS
    given = DataConfig.model_validate({**base, "palette": [[1, 1, 1], [2, 2, 2], [3, 3, 3]]})
    assert [c.color for c in read_classes(given)] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_a_table_of_colours_is_a_label_map_too(tmp_path: Path) -> None:
    path = write(tmp_path, "class_dict.csv", "name,r,g,b\nroad,1,2,3\nVoid,0,0,0\ncar,4,5,6\n")
    assert read_labelmap(path) == {"road": (1, 2, 3), "Void": (0, 0, 0), "car": (4, 5, 6)}
    base = {"kind": "files", "root": str(tmp_path), "labeled": "l", "val": "v", "classes": "class_dict.csv"}
    mapped = DataConfig.model_validate({**base, "label_map": "class_dict.csv"})
    assert [c.name for c in read_classes(mapped)] == ["road", "car"]
    # where masks hold ids, a name less would shift the others
    assert [c.name for c in read_classes(DataConfig.model_validate(base))] == ["road", "Void", "car"]
    write(tmp_path, "plain.csv", "name\nroad\n")
    with pytest.raises(DataError, match=r"has no colour for \['road'\]"):
        read_labelmap(tmp_path / "plain.csv")


def test_yaml_words_stay_names(tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path, "a.yaml", "names: [no, yes, 007]")).names == ["no", "yes", "007"]


def test_names_may_hold_commas_where_a_line_is_a_name(tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path, "a.txt", "wall\nbuilding, edifice\n")).names == [
        "wall", "building, edifice",
    ]  # fmt: skip


def test_ids_that_do_not_count_from_zero_are_cured_by_what_is_printed(tmp_path: Path) -> None:
    write(tmp_path, "objectInfo.txt", "Idx\tName\n3\tsky, air\n1\twall\n")
    base = ["data.kind=files", f"data.root={tmp_path}", "data.labeled=l", "data.val=v", "data.unlabeled=u"]
    with pytest.raises(DataError, match="has ids 1 to 3 for 2 classes") as info:
        read_classes(load_config(None, [*base, "data.classes=objectInfo.txt"]).data)
    classes, label_map = re.search(
        r"(data\.classes=\[.*\]) (data\.label_map=\{.*\})", str(info.value)
    ).groups()  # type: ignore[union-attr]
    cured = load_config(None, [*base, classes, label_map]).data
    assert [c.name for c in read_classes(cured)] == ["wall", "sky, air"]
    assert cured.label_map == {"1": "wall", "3": "sky, air"}
    assert read_classes(cured)[1].color == default_palette(["wall", "sky, air"])[1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<labels><label>a</label></labels>", "it begins with '<labels>"),
        ("a.pbtxt", "item {\n  id: 1\n  name: 'x'\n}\n", "it begins with 'item {'"),
        ("a.json", '{"a": {"b": 1}}', "its keys are a"),
        ("a.json", "[1, 2]", "its list holds 1"),
        ("a.json", '[{"x": 1}]', "its entries have the keys x and no name"),
        ("a.json", '{"0": "a",', "it is not valid JSON"),
        ("a.yaml", "a: [", "it is not valid YAML"),
        ("a.yaml", "just text", "it holds str instead of names"),
        ("a.txt", "1\tcat\tx\n2\tdog\ty\n", "it has tabs but no header"),
        ("a.csv", "kind,weight\ncat,1\ndog,2\n", "its header 'kind,weight' has no column of names"),
        ("a.csv", "id,name\n0,cat\n1\n", "'1' has 1 columns, its header 2"),
        ("a.csv", "id,name\nx,cat\n", "'x' is no id"),
        ("a.csv", "id,name\n0,cat\n0,dog\n", "the id 0 is given more than once"),
        ("a.json", '[{"id": 0, "name": "a"}, {"name": "b"}]', "only some of its entries have the key 'id'"),
        ("a.csv", "name,r,g,b\ncat,300,0,0\n", r"\['300', '0', '0'\] is no colour"),
        ("a.csv", "id,name\n0,\n", "a class has no name"),
        ("a.txt", "", "names no class"),
        ("a.bin", b"\x89PNG\r\n\0\0\0\0\0", "cannot be read"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_class_file(write(tmp_path, name, text))


def test_names_that_are_given_as_one_text_are_cured_by_what_is_printed(tmp_path: Path) -> None:
    base = ["data.kind=files", f"data.root={tmp_path}", "data.labeled=l", "data.val=v", "data.unlabeled=u"]
    with pytest.raises(DataError, match=r"not found; .*; names themselves are a list: ") as info:
        read_classes(load_config(None, [*base, "data.classes=sky, road"]).data)
    cure = str(info.value).partition("a list: ")[2]
    assert [c.name for c in read_classes(load_config(None, [*base, cure]).data)] == ["sky", "road"]


def test_ids_of_a_tools_own_are_not_ids_of_masks(tmp_path: Path) -> None:
    supervisely = {"classes": [{"title": n, "id": 900 + i, "color": "#010203"} for i, n in enumerate(NAMES)]}
    assert read_class_file(write(tmp_path, "meta.json", json.dumps(supervisely))).names == NAMES
    cvat = [{"name": n, "id": 77 - i, "attributes": []} for i, n in enumerate(NAMES)]
    assert read_class_file(write(tmp_path, "labels.json", json.dumps(cvat))).names == NAMES


def test_cures_of_plain_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every line holds commas .*; write one name a line"):
        read_class_file(write(tmp_path, "a.txt", "cat, dog\n"))
    assert read_class_file(write(tmp_path, "a.txt", "cat\ndog\n")).names == ["cat", "dog"]
    with pytest.raises(DataError, match=r"'class', looks like a header: take it off, or call the file \.csv"):
        read_class_file(write(tmp_path, "a.txt", "class\ncat\ndog\n"))
    assert read_class_file(write(tmp_path, "a.csv", "class\ncat\ndog\n")).names == ["cat", "dog"]
