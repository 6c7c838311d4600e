"""What the masks' values mean: names from a class file, the value map from what the masks hold."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from protoseg.check.cures import Seen, propose, two_values
from protoseg.config.data import DataConfig
from protoseg.config.load import apply_override
from protoseg.data.class_files import read_class_file
from protoseg.data.classes import IGNORE_NAMES, read_labelmap
from protoseg.data.known import known_map
from protoseg.data.masks import TRANSPARENT, MaskReader
from protoseg.data.names import IMAGE_SUFFIXES
from protoseg.errors import DataError
from protoseg.init.layout import FileEntry

CLASS_FILES = (
    "classes.txt", "class_names.txt", "labelmap.txt", "label_map.txt", "_classes.csv", "class_dict.csv",
    "classes.csv", "classes.json", "id2label.json", "label_map.json", "classes.yaml", "classes.yml",
    "labels.txt", "names.txt", "obj.names", "notes.json",
)  # fmt: skip
_IGNORE = 255
_MOST_VALUES = 64
"""Masks with more values are none, or have soft edges."""


@dataclass
class Meaning:
    """Settings that say what values mean, and what is uncertain about them."""

    settings: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    doubts: dict[str, list[str]] = field(default_factory=dict)

    def doubt(self, key: str, text: str) -> None:
        """Note what the user should look at."""
        self.doubts.setdefault(key, []).append(text)


def find_class_file(root: Path) -> Path | None:
    """A file of class names in the folder or one below it, one that can be read first."""
    places = [
        root,
        *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")),
    ]
    for place in places:
        for name in CLASS_FILES:
            path = place / name
            if path.is_file():
                try:
                    if any(
                        Path(name).suffix.lower() in IMAGE_SUFFIXES for name in read_class_file(path).names
                    ):
                        continue  # a list of label images
                except DataError:
                    try:
                        read_labelmap(path)
                    except DataError:
                        continue
                return path
    return None


def look_at_masks(
    entries: Sequence[FileEntry], *, progress: bool
) -> tuple[Counter[str], dict[Path, frozenset[int]], list[str]]:
    """Pixels by value (or colour, ``"r,g,b"``), the values that each image shows, and what cannot be read.

    Values are numbered in the order met for ``present``, since colours have no number.
    """
    reader = MaskReader(0, 256)  # no value has a meaning
    total: Counter[str] = Counter()
    present: dict[Path, frozenset[int]] = {}
    faults: list[str] = []
    numbers: dict[str, int] = {}
    for entry in tqdm(entries, desc="masks", unit="mask", leave=False) if progress else entries:
        assert entry.mask is not None
        try:
            found = reader.decode(entry.mask, entry.image)[1]
        except DataError as error:
            faults.append(str(error))
            found = {}
        total.update(found)
        shown = [value for value in found if value != str(_IGNORE)]
        present[entry.image] = frozenset(numbers.setdefault(value, len(numbers)) for value in shown)
    return total, present, faults


def explain(root: Path, values: Counter[str], masks: Sequence[Path], names: str | None) -> Meaning:
    """Settings for masks of these values.

    Args:
        root: Data root; a class file is looked for there.
        values: Pixels by value.
        masks: The masks' paths.
        names: Class names split by commas, or a file; None: what is found.

    Raises:
        DataError: If the values cannot be classes.
    """
    plain = [value for value in values if value not in (str(_IGNORE), TRANSPARENT)]
    if len(plain) > _MOST_VALUES:
        raise DataError(
            f"the masks hold {len(plain)} values, as {', '.join(plain[:5])}: these are photographs, or masks "
            "with soft edges (antialiased, or resized with interpolation). Export them without, as PNG, or "
            "name the folder of masks with --masks"
        )
    file = Path(names) if names and Path(names).is_file() else (find_class_file(root) if not names else None)
    if names and file is None:
        listed = [name.strip() for name in names.split(",") if name.strip()]
        return _with_names(listed, listed, values, None)
    if file is not None:
        return _with_file(root, file, values)
    voc = any("SegmentationClass" in part for path in masks[:1] for part in path.parts)
    if voc and set(plain) <= set(known_map("voc")):
        meaning = Meaning({"label_map": "voc"})
        meaning.remarks.append("classes: the 21 of PASCAL VOC, as the folders are called like its own")
        meaning.doubt(
            "label_map", "brings the names of PASCAL VOC; give data.classes if the classes are yours"
        )
        return meaning
    return _without_names(plain, values)


def _with_file(root: Path, file: Path, values: Counter[str]) -> Meaning:
    text = (
        os.path.relpath(file.absolute(), root)
        if file.absolute().is_relative_to(root)
        else str(file.absolute())
    )
    try:
        table = read_class_file(file)
        names, colors = table.names, dict(table.colors)
    except DataError:
        colors = dict(read_labelmap(file))
        names = list(colors)
    map_file = None
    if any("," in value for value in values) and len(colors) == len(names):
        map_file = text
        names = [name for name in names if name.lower() not in IGNORE_NAMES]
    meaning = _with_names(names, text, values, map_file)
    meaning.remarks.insert(0, f"classes: {len(names)} name(s) from {file}")
    return meaning


def _with_names(names: list[str], source: Any, values: Counter[str], map_file: str | None) -> Meaning:
    """Names that are known: are the values their ids, or is a map needed?"""
    meaning = Meaning({"classes": source})
    if map_file is not None:
        meaning.settings["label_map"] = map_file
        return meaning
    plain = [value for value in values if value != str(_IGNORE)]
    ids = {int(value) for value in plain if value.isdecimal() and int(value) < len(names)}
    unknown = {value: values[value] for value in plain if not (value.isdecimal() and int(value) in ids)}
    if len(names) == 2 and set(values) == {"0", str(_IGNORE)}:
        cure = two_values(names)
    elif unknown or len(names) == 1:
        if len(names) == 1 and str(_IGNORE) in values and set(plain) <= {"0"}:
            unknown[str(_IGNORE)] = values[str(_IGNORE)]
        data = DataConfig(kind="files", labeled="any", val="any", classes=names)
        cure = propose(data, names, Seen(frozenset(ids), unknown, None))
    else:
        return meaning
    shown = ", ".join(sorted(values, key=_order))
    words = [word for word in shlex.split(cure) if word.startswith("data.")] if "'" in cure else []
    keys = [word.partition("=")[0] for word in words]
    # a cure with a condition is the user's to choose
    if not words or len(set(keys)) < len(keys) or "if " in cure.lower():
        meaning.doubt("label_map", f"the masks hold {shown}: {cure}")
        return meaning
    raw: dict[str, Any] = {"data": meaning.settings}
    for word in words:
        apply_override(raw, word)
    key = "classes" if "data.classes" in keys else "label_map"
    meaning.doubt(key, f"the masks hold {shown}; {cure.partition('data.')[0].strip(' :') or 'so read'}")
    return meaning


def _without_names(plain: list[str], values: Counter[str]) -> Meaning:
    """No names: they are made up, to be replaced."""
    meaning = Meaning()
    shown = ", ".join(sorted(values, key=_order))
    white = str(_IGNORE)
    if set(plain) <= {"0"} and white in values:
        meaning.settings = {
            "classes": ["background", "object"],
            "label_map": {"0": "background", white: "object"},
        }
    elif set(plain) == {"0", "1"}:
        meaning.settings = {"classes": ["background", "object"]}
    elif any("," in value for value in plain):
        table = {value: _color_name(value) for value in sorted(plain, key=_order)}
        meaning.settings = {"classes": list(table.values()), "label_map": table}
    else:
        numbers = sorted(int(value) for value in plain)
        named = {str(number): f"class_{number}" for number in numbers}
        meaning.settings = {"classes": list(named.values())}
        if numbers != list(range(len(numbers))):
            meaning.settings["label_map"] = named
    if TRANSPARENT in values:
        meaning.settings.setdefault(
            "label_map", {value: i for i, value in enumerate(sorted(plain, key=_order))}
        )
        meaning.settings["label_map"][TRANSPARENT] = "ignore"
    meaning.doubt(
        "classes", f"no file of class names was found, so these are made up; the masks hold {shown}"
    )
    return meaning


def _color_name(value: str) -> str:
    return "background" if value == "0,0,0" else "color_" + value.replace(",", "_")


def _order(value: str) -> tuple[bool, list[int], str]:
    parts = value.split(",")
    numeric = all(part.lstrip("-").isdecimal() for part in parts)
    return not numeric, [int(part) for part in parts] if numeric else [], value


def working_size(images: Sequence[Path]) -> tuple[int, int] | None:
    """(height, width) that most of some images reach, or None when none can be read by its head."""
    from PIL import Image

    sizes = []
    for path in images[:: max(1, len(images) // 50)]:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except (OSError, ValueError):
            continue
    if not sizes:
        return None
    low = np.quantile(np.array(sizes), 0.25, axis=0)
    return int(low[0]), int(low[1])
