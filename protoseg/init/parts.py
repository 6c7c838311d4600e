"""Which images are labelled, unlabelled and for validation: from lists, from folders' names, or chosen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from protoseg.config.data import DataConfig
from protoseg.convert.division import choose_val, group_names
from protoseg.data.lists import EntryList, Split, scan_entries
from protoseg.errors import DataError
from protoseg.files import write_text_whole
from protoseg.init.layout import PARTS, FileEntry, Layout, file_entries, part_of
from protoseg.split.divide import parse_amount

_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
_DEPTH = 5


@dataclass
class Parts:
    """Images by part, and the settings that read those which a list of the user's names."""

    labeled: list[FileEntry] = field(default_factory=list)
    val: list[FileEntry] = field(default_factory=list)
    unlabeled: list[Path] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    """List by part, relative to the root."""
    remarks: list[str] = field(default_factory=list)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    """By setting: what could have been meant otherwise."""

    def doubt(self, key: str, text: str) -> None:
        """Note what the user should look at."""
        self.doubts.setdefault(key, []).append(text)


def converted(root: Path) -> dict[str, Any] | None:
    """The ``data`` section that ``protoseg.convert`` left in a folder, or None.

    Raises:
        DataError: If its root has gone.
    """
    path = root / "data.yaml"
    if not path.is_file() or not (root / "classes.txt").is_file():
        return None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    data = raw.get("data") if isinstance(raw, dict) else None
    if not isinstance(data, dict) or data.get("kind") != "files":
        return None
    if not Path(str(data.get("root"))).is_dir():
        raise DataError(
            f"{path} was made for {data.get('root')}, which is not there: convert the export again, or set "
            "root in it to where the images are now"
        )
    return data


def _read(root: Path, part: Split, path: Path) -> tuple[EntryList, list[str]]:
    text = os.path.relpath(path, root)
    names = {"labeled": text, "val": text, "unlabeled": text if part == "unlabeled" else None}
    return scan_entries(DataConfig(kind="files", root=str(root), classes=["any"], **names), part)


def _lists_of(folder: Path) -> dict[str, Path]:
    """The lists of a folder by part, those of the first name where several would do."""
    files = {
        path.stem.lower(): path for path in sorted(folder.iterdir()) if path.suffix.lower() in _LIST_SUFFIXES
    }
    return {
        part: files[next(name for name in names if name in files)]
        for part, names in PARTS.items()
        if any(name in files for name in names)
    }


def _folders(root: Path) -> Iterator[Path]:
    """Folders that may hold lists: neither hidden ones nor results nor those far down."""
    for place, below, _ in os.walk(root):
        folder = Path(place)
        deep = len(folder.relative_to(root).parts) + 1 >= _DEPTH
        below[:] = [] if deep else [name for name in below if not name.startswith(".") and name != "runs"]
        yield folder


def find_lists(root: Path) -> Parts | None:
    """Parts by the user's lists, or None without a list of labelled images that can be read."""
    folders = list(_folders(root))
    usable: list[tuple[Path, dict[str, Path], EntryList, list[str]]] = []
    for folder in sorted(folders, key=lambda path: (len(path.parts), str(path))):
        lists = _lists_of(folder)
        if "labeled" in lists:
            try:
                found, problems = _read(root, "labeled", lists["labeled"])
            except DataError:
                continue
            if found.entries:
                usable.append((folder, lists, found, problems))
    if not usable:
        return None
    folder, lists, found, problems = min(usable, key=lambda item: len(item[3]) > 0)
    parts = Parts(
        labeled=file_entries(found.entries), settings={"labeled": os.path.relpath(lists["labeled"], root)}
    )
    others = [os.path.relpath(item[1]["labeled"], root) for item in usable if item[0] != folder]
    if others:
        more = f" and {len(others) - 4} more" if others[4:] else ""
        parts.doubt("labeled", f"there are other lists: {', '.join(others[:4])}{more}")
    if problems:
        parts.doubt("labeled", f"{len(problems)} line(s) cannot be read: {problems[0]}")
    # validation is often shared by lists of several sizes, further up
    for place in [folder, *folder.parents]:
        if "val" not in lists and place.is_relative_to(root):
            lists |= {part: path for part, path in _lists_of(place).items() if part in ("val", "test")}
    for part in ("val", "unlabeled"):
        if part in lists:
            entries, faults = _read(root, part, lists[part])
            parts.settings[part] = os.path.relpath(lists[part], root)
            parts.remarks.append(f"{part}: {lists[part]}, {len(entries.entries)} images")
            if faults:
                parts.doubt(part, f"{len(faults)} line(s) cannot be read: {faults[0]}")
            if part == "val":
                parts.val = file_entries(entries.entries)
            else:
                parts.unlabeled = [entry.image for entry in file_entries(entries.entries)]
    parts.remarks.insert(0, f"labeled: {lists['labeled']}, {len(parts.labeled)} images ({found.family})")
    parts.settings["test"] = os.path.relpath(lists["test"], root) if "test" in lists else ""
    return parts


def add_the_rest(parts: Parts, layout: Layout, root: Path) -> None:
    """Take images that no list names as unlabelled."""
    test = parts.settings.pop("test", "")
    if "unlabeled" in parts.settings:
        return
    named = {
        path.resolve() for entry in (*parts.labeled, *parts.val) for path in (entry.image, entry.mask) if path
    }
    if test:
        others = file_entries(_read(root, "unlabeled", root / test)[0].entries)
        named |= {entry.image.resolve() for entry in others}
    everything = sorted([*layout.images, *(pair.image for pair in layout.pairs)])
    kept = {"labeled", "unlabeled", None}
    parts.unlabeled = [
        path
        for path in everything
        if path.resolve() not in named and part_of(PurePosixPath(path.relative_to(root).as_posix())) in kept
    ]
    if parts.unlabeled:
        parts.doubt(
            "unlabeled",
            f"the {len(parts.unlabeled)} images that no list names; take out what you want to test on",
        )


def by_folders(layout: Layout, root: Path) -> Parts:
    """Parts by the names of folders (``train``, ``val``, ``test``, ``unlabeled``)."""
    parts = Parts()
    parts.doubts = {"labeled": list(layout.doubts)} if layout.doubts else {}
    left: dict[str, int] = {}
    for pair in layout.pairs:
        part = part_of(PurePosixPath(pair.image.relative_to(root).as_posix()))
        if part == "val":
            parts.val.append(pair)
        elif part == "test":
            left["test"] = left.get("test", 0) + 1
        elif part == "unlabeled":
            parts.unlabeled.append(pair.image)
        else:
            parts.labeled.append(pair)
    for image in layout.images:
        part = part_of(PurePosixPath(image.relative_to(root).as_posix()))
        if part in ("val", "test"):
            left[f"{part}, without a mask"] = left.get(f"{part}, without a mask", 0) + 1
        else:
            parts.unlabeled.append(image)
    parts.remarks.append(f"images with a mask: {len(layout.pairs)}, without: {len(layout.images)}")
    parts.remarks += [f"{count} image(s) of {name} are left out" for name, count in left.items()]
    return parts


def choose_validation(
    parts: Parts, present: Mapping[Path, frozenset[int]], share: str, seed: int, root: Path
) -> None:
    """Take validation images out of the labelled ones, so that every class stays among the labels.

    Args:
        parts: Changed in place.
        present: Values that each labelled image's mask shows.
        share: As ``20%``.
        seed: Seed of the choice.
        root: Folder that names are relative to.

    Raises:
        DataError: If there is only one labelled image.
    """
    pool = parts.labeled
    if len(pool) < 2:
        raise DataError(
            f"only one image has a mask ({pool[0].image}): at least two are needed, one to learn from and "
            "one to measure on; ten or more make the measurement worth something"
        )
    groups, warning = group_names([entry.image.relative_to(root).as_posix() for entry in pool], "auto")
    count = max(1, parse_amount(share, len(pool), "--val"))
    chosen = set(choose_val([present[entry.image] for entry in pool], groups, count, seed))
    if not chosen:
        # every class needs its image among the labels; a training cannot do without validation
        chosen = {len(pool) - 1}
        parts.doubt("val", "too few labelled images to keep every class among the labels")
    parts.val = [entry for i, entry in enumerate(pool) if i in chosen]
    parts.labeled = [entry for i, entry in enumerate(pool) if i not in chosen]
    parts.settings.pop("labeled", None)
    parts.doubt(
        "val",
        f"{len(parts.val)} of {len(pool)} labelled images, chosen with seed {seed}, as no part is called val",
    )
    if warning:
        parts.doubt("val", warning)


def write_missing_lists(parts: Parts, folder: Path, root: Path) -> list[Path]:
    """Write a list for each part that none of the user's names; returns them.

    Raises:
        DataError: If one exists.
    """
    rows: dict[str, list[tuple[Path | None, ...]]] = {
        "labeled": [(entry.image, entry.mask) for entry in parts.labeled],
        "val": [(entry.image, entry.mask) for entry in parts.val],
        "unlabeled": [(image,) for image in parts.unlabeled],
    }
    todo = {part: rows[part] for part in rows if rows[part] and part not in parts.settings}
    taken = [str(folder / f"{part}.txt") for part in todo if (folder / f"{part}.txt").exists()]
    if taken:
        raise DataError(
            f"{', '.join(taken)} exist(s) and would be overwritten; move them, or give another -o"
        )
    written = []
    for part, pairs in todo.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{part}.txt"
        write_text_whole(path, "".join(f"{_line(pair, root)}\n" for pair in pairs))
        inside = path.absolute().is_relative_to(root)
        parts.settings[part] = (
            path.absolute().relative_to(root).as_posix() if inside else str(path.absolute())
        )
        written.append(path)
    return written


def _line(paths: Iterable[Path | None], root: Path) -> str:
    return "\t".join(path.relative_to(root).as_posix() for path in paths if path is not None)
