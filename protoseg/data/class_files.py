"""Reads the files in which annotation tools keep class names, their ids and their colours."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from protoseg.data.columns import SEPARATORS, split_fields
from protoseg.data.palette import Color
from protoseg.data.text import read_lines
from protoseg.errors import DataError

FORMS = (
    "one name a line, a CSV or TSV with a header (_classes.csv, class_dict.csv), labelmap.txt, or a list or "
    "mapping of names in JSON or YAML"
)
_NAME_HEADS = (
    "name",
    "names",
    "class",
    "classes",
    "class_name",
    "classname",
    "label",
    "labels",
    "category",
    "title",
)
_ID_HEADS = (
    "pixel_value",
    "id",
    "idx",
    "index",
    "value",
    "class_id",
    "label_id",
    "category_id",
    "class_index",
)
_COLOR_HEADS = ("color", "colour", "rgb", "color_rgb", "hex")
_LISTS = ("classes", "names", "categories", "labels", "id2label", "label2id")
_ID_NAME = re.compile(r"(\d+)\s*(?:[:\t ]\s*(?P<free>[^\t]+)|[,;]\s*(?P<field>[^,;\t]+))")


@dataclass
class ClassTable:
    """Classes in the order of their ids."""

    names: list[str] = field(default_factory=list)
    colors: dict[str, Color] = field(default_factory=dict)
    """Colour by name, where the file gives one."""


def read_class_file(path: Path) -> ClassTable:
    """Names by id, and colours.

    Raises:
        DataError: If the file has another form, or ids that do not count from 0; says what was found.
    """
    lines = read_lines(path)
    text = [line for line in lines if line and not line.startswith("#")]
    if not text:
        raise DataError(f"{path} names no class; expected {FORMS}")
    suffix = path.suffix.lower()
    if suffix == ".json" or text[0][0] in "{[":
        return _table(path, _json(path, lines))
    if suffix in (".yaml", ".yml") or all(line.startswith("- ") for line in text):
        return _table(path, _yaml(path, read_lines(path, strip=False)))
    if text[0][0] in "<" or any(line.endswith(("{", "}")) for line in text):
        raise _refused(path, f"it begins with {text[0][:40]!r}")
    table = _columns(path, text)
    if table is None:
        table = _headless(path, text)
    if table is None:
        table = ClassTable(_plain_names(path, text))
    return table


def _refused(path: Path, found: str) -> DataError:
    return DataError(f"{path} is no class file that is read: {found}; expected {FORMS}")


def _json(path: Path, lines: Sequence[str]) -> Any:
    try:
        return json.loads("\n".join(lines))
    except ValueError as error:
        raise _refused(path, f"it is not valid JSON ({error})") from error


def _yaml(path: Path, lines: Sequence[str]) -> Any:
    try:
        # every scalar stays text: `no` is a name here
        return yaml.load("\n".join(lines), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise _refused(path, f"it is not valid YAML ({error})") from error


def _table(path: Path, found: Any) -> ClassTable:
    """Classes of a JSON or YAML value."""
    if isinstance(found, Mapping):
        inside = [key for key in _LISTS if isinstance(found.get(key), list | dict)]
        if inside:
            return _table(path, found[inside[0]])
        return _mapping(path, found)
    if not isinstance(found, list) or not found:
        raise _refused(path, f"it holds {type(found).__name__} instead of names")
    if all(isinstance(item, str) for item in found):
        return ClassTable([item.strip() for item in found])
    if not all(isinstance(item, Mapping) for item in found):
        raise _refused(path, f"its list holds {found[0]!r}")
    rows = [{str(key).lower(): value for key, value in item.items()} for item in found]
    head = [key for key in (*_NAME_HEADS, *_ID_HEADS, *_COLOR_HEADS) if all(key in row for row in rows)]
    names = [key for key in head if key in _NAME_HEADS]
    if not names:
        raise _refused(path, f"its entries have the keys {', '.join(rows[0])} and no name")
    # Supervisely and CVAT number the classes of all their projects
    own = names[0] == "title" or "attributes" in rows[0]
    known = [key for key in _ID_HEADS if any(key in row for row in rows)]
    # {"label": 0, "name": "sky"}
    known += [key for key in names[1:] if all(_is_id(row[key]) for row in rows)]
    ids = [] if own else known
    if ids and any(ids[0] not in row for row in rows):
        raise _refused(path, f"only some of its entries have the key {ids[0]!r}")
    colors = [key for key in head if key in _COLOR_HEADS]
    return _ordered(
        path,
        [str(row[names[0]]) for row in rows],
        [row[ids[0]] for row in rows] if ids else None,
        [row[colors[0]] for row in rows] if colors else None,
    )


def _mapping(path: Path, found: Mapping[Any, Any]) -> ClassTable:
    """``{"0": "sky"}``, ``{"sky": 0}`` or ``{"sky": [r, g, b]}``."""
    keys, values = [str(key) for key in found], list(found.values())
    if all(key.strip().isdecimal() for key in keys) and all(isinstance(value, str) for value in values):
        return _ordered(path, values, keys, None)
    if values and all(_is_id(value) for value in values):
        return _ordered(path, keys, values, None)
    if values and all(isinstance(value, list) or str(value).startswith("#") for value in values):
        return _ordered(path, keys, None, values)
    raise _refused(path, f"its keys are {', '.join(keys[:5])}")


def _is_id(value: Any) -> bool:
    return not isinstance(value, bool) and str(value).strip().isdecimal()


def _columns(path: Path, text: Sequence[str]) -> ClassTable | None:
    """A table whose first line names its columns."""
    for separator in SEPARATORS:
        head = [name.lower().replace(" ", "_") for name in split_fields(text[0], separator)]
        name = next((head.index(word) for word in _NAME_HEADS if word in head), None)
        if name is None or (len(head) == 1 and path.suffix.lower() not in (".csv", ".tsv")):
            continue
        rows = [split_fields(line, separator) for line in text[1:]]
        short = next((number for number, row in enumerate(rows, start=2) if len(row) != len(head)), None)
        if short is not None:
            raise _refused(
                path,
                f"{text[short - 1]!r} has {len(rows[short - 2])} columns, its header {len(head)}",
            )
        number = next((head.index(word) for word in _ID_HEADS if word in head), None)
        channel = head[0] in ("r", "g", "b", "red", "green", "blue")
        if number is None and name > 0 and not channel and all(_is_id(row[0]) for row in rows):
            number = 0  # whatever it is called
        color = next((head.index(word) for word in _COLOR_HEADS if word in head), None)
        colors: list[Any] | None = None if color is None else [row[color] for row in rows]
        for channels in (("r", "g", "b"), ("red", "green", "blue")):
            if set(channels) <= set(head):
                colors = [[row[head.index(channel)] for channel in channels] for row in rows]
        return _ordered(
            path,
            [row[name] for row in rows],
            None if number is None else [row[number] for row in rows],
            colors,
        )
    return None


def _headless(path: Path, text: Sequence[str]) -> ClassTable | None:
    """``name,r,g,b`` or ``0,name`` (``0: name``, ``0 name``) in every line."""
    for separator in SEPARATORS:
        rows = [split_fields(line, separator) for line in text]
        if all(len(row) == 4 and all(_is_id(value) for value in row[1:]) for row in rows):
            return _ordered(path, [row[0] for row in rows], None, [row[1:] for row in rows])
    matches = [_ID_NAME.fullmatch(line) for line in text]
    found = [match for match in matches if match is not None]
    if len(found) == len(text) and len({int(match[1]) for match in found}) == len(text):
        return _ordered(
            path, [match["free"] or match["field"] for match in found], [match[1] for match in found], None
        )
    return None


def _plain_names(path: Path, text: Sequence[str]) -> list[str]:
    """One name a line.

    Raises:
        DataError: If the lines look like something else.
    """
    if any("\t" in line for line in text):
        raise _refused(path, f"it has tabs but no header that names a column of names ({text[0]!r})")
    if path.suffix.lower() in (".csv", ".tsv") and any("," in line or ";" in line for line in text):
        raise _refused(path, f"its header {text[0]!r} has no column of names (name, class, label)")
    if all("," in line or ";" in line for line in text):
        raise _refused(path, f"every line holds commas ({text[0]!r}); write one name a line")
    if text[0].lower() in _NAME_HEADS and len(text) > 1:
        raise _refused(
            path, f"its first line, {text[0]!r}, looks like a header: take it off, or call the file .csv"
        )
    quoted = all(len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" for line in text)
    return [line[1:-1] for line in text] if quoted else list(text)


def _ordered(
    path: Path, names: Sequence[str], ids: Sequence[Any] | None, colors: Sequence[Any] | None
) -> ClassTable:
    """Classes sorted by id.

    Raises:
        DataError: If ids are not 0, 1, 2, ...; says how to map them.
    """
    names = [name.strip() for name in names]
    if not all(names):
        raise _refused(path, "a class has no name")
    table = ClassTable(list(names))
    if colors is not None:
        table.colors = {
            name: _color(path, value)
            for name, value in zip(names, colors, strict=True)
            if value not in ("", None)
        }
    if ids is None:
        return table
    wrong = next((value for value in ids if not _is_id(value)), None)
    if wrong is not None:
        raise _refused(path, f"{wrong!r} is no id")
    repeated = [value for value, count in Counter(int(value) for value in ids).items() if count > 1]
    if repeated:
        raise _refused(path, f"the id {repeated[0]} is given more than once")
    numbered = sorted(zip((int(value) for value in ids), names, strict=True))
    table.names = [name for _, name in numbered]
    if [number for number, _ in numbered] != list(range(len(names))):
        label_map = json.dumps({str(number): name for number, name in numbered}, ensure_ascii=False)
        raise DataError(
            f"{path} has ids {numbered[0][0]} to {numbered[-1][0]} for {len(names)} classes, but class ids "
            "count from 0 without a gap: give the names alone, and the ids that masks hold, as "
            f"data.classes={json.dumps(table.names, ensure_ascii=False)} data.label_map={label_map}"
        )
    return table


def _color(path: Path, value: Any) -> Color:
    text = str(value).strip().strip("()[]")
    if re.fullmatch(r"#?[0-9a-fA-F]{6}", text) and (text.startswith("#") or not text.isdecimal()):
        number = int(text.removeprefix("#"), 16)
        return number >> 16, number >> 8 & 255, number & 255
    parts = [part.strip() for part in re.split(r"[,\s]+", text)] if not isinstance(value, list) else value
    if len(parts) == 3 and all(_is_id(part) and int(part) <= 255 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise _refused(path, f"{value!r} is no colour (three numbers 0 to 255, or #rrggbb)")
