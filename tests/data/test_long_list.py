"""Lists and folders that are too long to look at each file at the start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protoseg.check.inspect import inspect
from protoseg.config.data import DataConfig
from protoseg.config.load import parse_config
from protoseg.data import lists, long_list
from protoseg.data.compact import join_names, split_lines
from protoseg.data.images import save_image, save_mask
from protoseg.data.lists import EntryList, read_entries, scan_entries
from protoseg.data.long_list import FolderEntries, ListedEntries, MissingEntryError
from protoseg.data.sources import open_source
from protoseg.errors import DataError

NAMES = ["a b.jpg", "é.jpg", *(f"x{n}.v2.jpg" for n in range(8))]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lists, "LONG", 5)
    # nothing but the head is looked at, so that tests see what is left for later
    monkeypatch.setattr(long_list, "_HEAD", 2)
    monkeypatch.setattr(long_list, "_SAMPLED", 1)
    (tmp_path / "u").mkdir()
    for number, name in enumerate(NAMES):
        save_image(tmp_path / "u" / name, np.full((8, 8, 3), number, np.uint8))
    for name in "lv":
        save_image(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
        save_mask(tmp_path / f"{name}_mask.png", np.eye(8, dtype=np.uint8), [])
        (tmp_path / f"{name}.txt").write_text(f"{name}.png {name}_mask.png\n")
    return tmp_path


def config(root: Path, **keys: Any) -> DataConfig:
    roles = {"labeled": "l.txt", "val": "v.txt", "unlabeled": "u.txt"}
    return DataConfig(**{"kind": "files", "root": str(root), "classes": ["a", "b"], **roles, **keys})


def write(root: Path, lines: list[str], encoding: str = "utf-8") -> DataConfig:
    (root / "u.txt").write_bytes("\n".join(lines).encode(encoding))
    return config(root)


def short(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> EntryList:
    """As a list is read when every line is looked up."""
    with monkeypatch.context() as patch:
        patch.setattr(lists, "LONG", 10**9)
        return read_entries(data, "unlabeled")


PLAIN = [f"u/{name}" for name in NAMES if " " not in name]


@pytest.mark.parametrize(
    "lines",
    [
        PLAIN,
        ["# comment", "", *PLAIN, "", "# another"],
        [f"  /{line}  \r" for line in PLAIN],
        [f"{line} None" for line in PLAIN],
        [f"{line}\tl_mask.png" for line in [*PLAIN, "u/a b.jpg"]],
        ["image,mask", *(f'"{line}",' for line in PLAIN)],
        [line.removesuffix(".jpg") for line in PLAIN],
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_long_list_names_what_a_short_one_does(
    root: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], encoding: str
) -> None:
    data = write(root, lines, encoding)
    expected, found = short(data, monkeypatch), read_entries(data, "unlabeled")
    assert isinstance(found.entries, ListedEntries)
    assert [entry.image for entry in found.entries] == [entry.image for entry in expected.entries]
    assert found.warnings == expected.warnings
    if not lines[0].endswith(".v2"):  # what is a suffix there only the disk tells
        assert found.sha256 == expected.sha256


def test_forms_that_only_the_disk_explains_are_read_line_by_line(root: Path) -> None:
    data = write(root, [f"{line},l_mask.png" for line in PLAIN])
    found = read_entries(data, "unlabeled")
    assert not isinstance(found.entries, ListedEntries)
    assert len(found.entries) == len(PLAIN)


def test_a_missing_file_is_told_when_it_is_drawn(root: Path) -> None:
    lines = [*PLAIN[:4], "u/gone.jpg", *PLAIN[4:]]
    data = write(root, lines)
    found, problems = scan_entries(data, "unlabeled")
    assert problems == []
    with pytest.raises(MissingEntryError, match=r"u\.txt, line 5: image u/gone\.jpg not found"):
        found.entries[4]
    source = open_source(data, "unlabeled", [])
    assert source.name(4) == "u/gone.jpg"
    with pytest.raises(DataError, match="line 5"):
        source.image(4)
    report = inspect(parse_config({"data": data.model_dump()}), quick=False)
    (text,) = report.problems["missing"].examples
    assert "line 5" in text
    # the first lines, and some others, are looked at before a training
    _, problems = scan_entries(write(root, ["u/gone.jpg", *PLAIN]), "unlabeled")
    assert "line 1: image u/gone.jpg not found" in problems[0]


def test_remarks_on_a_long_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(root, [*PLAIN, PLAIN[2], "l_mask.png", "v.png"])
    found = read_entries(data, "unlabeled")
    told = [text.replace(f"{root}/u/", "u/") for text in short(data, monkeypatch).warnings]
    assert list(found.warnings) == told
    assert any("1 line(s) name masks of labelled images" in text for text in found.warnings)
    assert any(f"1 image(s) are listed more than once, as {PLAIN[2]}" in text.replace(f"{root}/", "")
               for text in found.warnings)  # fmt: skip
    report = inspect(parse_config({"data": data.model_dump()}), quick=True)
    assert report.problems["overlap"].examples == [f"unlabeled and val: {root}/v.png"]


def test_a_long_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "u" / "more").mkdir()
    os.link(root / "u" / "é.jpg", root / "u" / "more" / "z.jpg")
    (root / "u" / "more" / "linked.png").symlink_to(root / "l_mask.png")
    save_mask(root / "u" / "x0.v2_mask.png", np.zeros((8, 8), np.uint8), [])
    data = config(root, unlabeled="u")
    expected = short(data, monkeypatch)
    looked = []
    stat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: (looked.append(self), stat(self))[1])
    found = read_entries(data, "unlabeled")
    assert isinstance(found.entries, FolderEntries)
    assert [entry.image for entry in found.entries] == [entry.image for entry in expected.entries]
    assert len(found.entries) == len(NAMES) + 1
    assert (found.sha256, found.warnings) == (expected.sha256, expected.warnings)
    assert [path.name for path in looked if path.is_relative_to(root / "u")] == ["linked.png"], (
        "only the link"
    )
    save_image(root / "u" / "x0.v2.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"have the same stem \(x0\.v2\)"):
        read_entries(data, "unlabeled")


def test_names_in_arrays() -> None:
    texts = ["a/b.jpg", "c.png", "ä/ö.JPG", "", "noend", "x.y/z", "c.png"]
    names = join_names(texts)
    assert [names[i] for i in range(len(names))] == texts
    last = [text.rpartition("/")[2] for text in texts]
    assert [name.decode() for name in names.last_parts().bytes()] == last
    bare = names.last_parts().without_endings([".jpg", ".png"])
    assert [name.decode() for name in bare.bytes()] == ["b", "c", "ö", "", "noend", "z", "c"]
    assert names.find({"c.png", "none"}) == {"c.png": [1, 6]}
    assert names.first_repeated() == (1, "c.png")
    lines = split_lines("  one \n\n\ttwo\t\nlast")
    assert [name.decode() for name in lines.bytes()] == ["one", "", "two", "last"]


@pytest.mark.parametrize("texts", [["b", "a", "ab", "a"], ["é", "e\u0301", "z"], ["x" * 2000, "y"], ["one"]])
def test_the_hash_of_names_is_that_of_their_stems(texts: list[str]) -> None:
    assert join_names(texts).digest() == lists.hash_stems([Path(f"{text}.jpg") for text in texts])
