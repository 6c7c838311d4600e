"""Class names and colours, and the label maps that annotation tools write. Needs no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from protoseg.config.data import BUILT_IN_MAPS, DataConfig
from protoseg.data.class_files import read_class_file
from protoseg.data.known import known_classes
from protoseg.data.lists import named_file
from protoseg.data.palette import Color, default_palette
from protoseg.data.synthetic import synthetic_classes
from protoseg.data.text import read_lines
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

IGNORE_NAMES = frozenset({"ignore", "void", "unlabeled", "unlabelled"})
_LABELMAP_LINE = re.compile(r"^(?P<name>[^:#]+):\s*(?P<rgb>\d+\s*,\s*\d+\s*,\s*\d+)\s*(:.*)?$")


def parse_color(text: str, where: str) -> Color:
    """Parse ``"128,0,0"``.

    Raises:
        DataError: If it is not three numbers in [0, 255].
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(p.isdecimal() and int(p) <= 255 for p in parts):
        raise DataError(f"{where}: {text!r} is not a colour; write three numbers 0 to 255, as 128,0,0")
    return int(parts[0]), int(parts[1]), int(parts[2])


def read_labelmap(path: Path) -> dict[str, Color]:
    """Read a CVAT ``labelmap.txt`` (``name:r,g,b:parts:actions`` lines) as colour by name.

    Another class file with a colour for each class (``class_dict.csv``) is read likewise.

    Raises:
        DataError: If the file cannot be read or a line has another form.
    """
    table: dict[str, Color] = {}
    if path.suffix.lower() in (".csv", ".tsv", ".json", ".yaml", ".yml"):
        found = read_class_file(path)
        missing = [name for name in found.names if name not in found.colors]
        if missing:
            raise DataError(f"{path} has no colour for {missing[:3]}; a label map needs one for each class")
        return found.colors
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LABELMAP_LINE.match(line)
        if match is None:
            raise DataError(f"{path}, line {number}: expected name:r,g,b:: as CVAT writes, got {line!r}")
        table[match["name"].strip()] = parse_color(match["rgb"], f"{path}, line {number}")
    if not table:
        raise DataError(f"{path} names no class; expected name:r,g,b:: lines as CVAT writes")
    return table


def read_classes(config: DataConfig) -> list[ClassInfo]:
    """Names and colours of the classes by id.

    Names come from ``data.classes`` (a list or a file, see ``protoseg.data.class_files``); colours from
    ``data.palette``, else from that file or a ``labelmap.txt``, else they are ``default_palette``'s.

    Raises:
        DataError: If names are missing, repeated or too many, or colours do not match in number.
    """
    if config.kind == "synthetic":
        return synthetic_classes(config.synthetic)
    colors: dict[str, Color] = {}
    if config.label_map in BUILT_IN_MAPS:
        colors = known_classes(str(config.label_map))
    elif isinstance(config.label_map, str):
        colors = read_labelmap(named_file(config, config.label_map, "data.label_map"))
    names = config.classes
    if names is None and config.label_map in BUILT_IN_MAPS:
        names = list(colors)
    if isinstance(names, str):
        try:
            path = named_file(config, names, "data.classes")
        except DataError as error:
            if "," not in names:
                raise
            listed = json.dumps([name.strip() for name in names.split(",")], ensure_ascii=False)
            raise DataError(f"{error}; names themselves are a list: data.classes={listed}") from error
        lines = [line for line in read_lines(path) if line and not line.startswith("#")]
        if lines and all(_LABELMAP_LINE.match(line) for line in lines):
            colors = {**read_labelmap(path), **colors}
            names = [name for name in colors if name.lower() not in IGNORE_NAMES]
        else:
            table = read_class_file(path)
            # where masks hold colours, what is ignored has one too, but no id
            mapped = isinstance(config.label_map, str)
            names = [name for name in table.names if not (mapped and name.lower() in IGNORE_NAMES)]
            colors = {**table.colors, **colors}
    if not names:
        raise DataError("data.classes is empty; list the class names in the order of their ids")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"data.classes names {repeated} more than once")
    if len(names) > 255:
        raise DataError(f"data.classes has {len(names)} names; at most 255 fit beside ignore_index")
    if config.ignore_index < len(names):
        raise DataError(
            f"data.ignore_index={config.ignore_index} is also the id of class "
            f"{names[config.ignore_index]!r}; use 255"
        )
    if config.palette is not None and len(config.palette) != len(names):
        raise DataError(f"data.palette has {len(config.palette)} colours for {len(names)} classes")
    chosen = config.palette or default_palette(names, colors)
    return [ClassInfo(name=name, color=color) for name, color in zip(names, chosen, strict=True)]
