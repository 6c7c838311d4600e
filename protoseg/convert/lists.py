"""The lists of a conversion and the ``data`` section that reads them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protoseg.convert.classes import ClassTable
from protoseg.convert.division import choose_val, group_names
from protoseg.convert.source import Notes
from protoseg.errors import DataError
from protoseg.files import write_text_whole
from protoseg.split.divide import parse_amount

LISTS = ("labeled", "unlabeled", "val")


@dataclass
class Entry:
    """An image of the result; paths are below the target unless absolute."""

    name: str
    image: str
    mask: str | None
    part: str
    present: frozenset[int] = frozenset()


def divide(
    entries: list[Entry], val: str | None, group: str, seed: int, notes: Notes
) -> tuple[dict[str, list[Entry]], str]:
    """The lists, and where val comes from.

    The export's own val and test stay, unless --val is given (then val is chosen anew from train and val), or
    no labelled image would be left.
    """
    labelled = [entry for entry in entries if entry.mask is not None]
    if not labelled:
        found = "".join(f"\n{line}" for line in notes.lines())
        raise DataError(f"no image has an annotation with a labelled pixel{found}")
    held_out = any(entry.part != "test" for entry in labelled)
    parts: dict[str, list[Entry]] = {"labeled": [], "unlabeled": [], "val": [], "test": []}
    for entry in entries:
        test = held_out and entry.part == "test"
        if entry.mask is not None:
            parts["test" if test else "labeled"].append(entry)
        elif test:
            notes.leave_out(
                "test images without an annotation (to train on them, add them to unlabeled.txt)", entry.name
            )
        else:
            parts["unlabeled"].append(entry)
    pool = parts["labeled"]
    own = [entry for entry in pool if entry.part == "val"]
    if val is None and 0 < len(own) < len(pool):
        parts["val"], val_from = own, "the export's own"
        parts["labeled"] = [entry for entry in pool if entry.part != "val"]
    else:
        share = val or "20%"
        groups, warning = group_names([entry.name for entry in pool], group)
        if warning:
            notes.warn(warning)
        count = parse_amount(share, len(pool), "--val")
        chosen = set(choose_val([entry.present for entry in pool], groups, count, seed))
        parts["val"] = [entry for i, entry in enumerate(pool) if i in chosen]
        parts["labeled"] = [entry for i, entry in enumerate(pool) if i not in chosen]
        val_from = f"{share} of {len(pool)} annotated images, chosen with seed {seed}"
    _remark(parts, notes)
    return parts, val_from


def _remark(parts: dict[str, list[Entry]], notes: Notes) -> None:
    if not parts["unlabeled"]:
        notes.warn(
            "no image is left without a label: name others in data.unlabeled, or train with "
            "method.preset=supervised"
        )
    if not parts["val"]:
        notes.warn(
            "no validation list was made (too few labelled images, or all are needed to show every class); "
            "a training needs one: annotate more, or give --val"
        )


def _relative(text: str, root: Path, out: Path) -> str:
    return (out / text).relative_to(root).as_posix()


def data_settings(
    entries: list[Entry], parts: dict[str, list[Entry]], table: ClassTable, out: Path
) -> dict[str, Any]:
    """The ``data`` keys. The root is the deepest folder that holds the target and every image."""
    folders = {str(Path(entry.image).parent) for entry in entries if Path(entry.image).is_absolute()}
    root = Path(os.path.commonpath([str(out), *folders]))
    settings: dict[str, Any] = {"root": str(root)}
    for part in LISTS:
        settings[part] = _relative(f"{part}.txt", root, out) if parts[part] else None
    settings["classes"] = table.names
    if table.palette is not None:
        settings["palette"] = [list(color) for color in table.palette]
    return settings


def yaml_section(settings: dict[str, Any]) -> str:
    """The ``data`` section; JSON values are YAML values, and stay quoted where YAML would guess a type."""
    lines = ["data:", "  kind: files"]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def write_lists(
    partial: Path, parts: dict[str, list[Entry]], settings: dict[str, Any], table: ClassTable, out: Path
) -> None:
    """Write the lists, ``classes.txt`` and ``data.yaml`` into ``partial``, to be read in ``out``."""
    root = Path(settings["root"])
    for part, entries in parts.items():
        lines = []
        for entry in entries:
            columns = (
                [entry.image] if part == "unlabeled" or entry.mask is None else [entry.image, entry.mask]
            )
            lines.append("\t".join(_relative(column, root, out) for column in columns))
        if lines:
            write_text_whole(partial / f"{part}.txt", "".join(f"{line}\n" for line in lines))
    write_text_whole(partial / "classes.txt", "".join(f"{name}\n" for name in table.names))
    write_text_whole(partial / "data.yaml", yaml_section(settings))
