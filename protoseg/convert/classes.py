"""Which class gets which id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from protoseg.annotate.draft import BACKGROUND_NAMES
from protoseg.convert.draw import IGNORED
from protoseg.convert.source import Export
from protoseg.data.palette import Color, default_palette
from protoseg.errors import DataError

Others = Literal["error", "ignore", "background"]


@dataclass(frozen=True)
class ClassTable:
    """Names by id, and the id of every name of the source."""

    names: list[str]
    ids: dict[str, int]
    """Class id by name in the source; 255 is ignored."""
    palette: list[Color] | None
    values: dict[int, int]
    """Class id by value of a label map."""
    background: int
    """Value of pixels without an object."""

    def map_values(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        """Class ids ``(H, W)`` of a label map's values.

        Raises:
            DataError: If a value has no class.
        """
        found, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
        unknown = [
            f"{v} ({n} pixels)"
            for v, n in zip(found.tolist(), counts.tolist(), strict=True)
            if v not in self.values
        ]
        if unknown:
            known = sorted(value for value, label in self.values.items() if label != IGNORED)
            raise DataError(
                f"values without a class: {', '.join(unknown[:8])}; named are {known[0]} to {known[-1]}"
                if known else f"values without a class: {', '.join(unknown[:8])}"
            )  # fmt: skip
        table = np.array([self.values[value] for value in found.tolist()], np.uint8)
        return table[inverse].reshape(raw.shape)


def class_table(
    export: Export, chosen: Sequence[str] | None, ignore: Sequence[str], others: Others
) -> ClassTable:
    """Number the classes: the background first where objects lie on one, then the source's order.

    Args:
        export: What was read.
        chosen: The user's names in the order of their ids; None: the source's.
        ignore: Names that become ignored.
        others: What classes of the source that ``chosen`` lacks become.

    Raises:
        DataError: If names are missing, unknown, repeated or too many.
    """
    if export.classes == [] and export.instances:
        raise DataError("no annotation holds an object that can be drawn")
    names = list(chosen or export.classes or [])
    if not names:
        raise DataError(
            f"the source does not name its classes: give --classes a,b,c in the order of {_seen(export)}"
        )
    source = list(export.classes) if export.classes is not None else names
    void = {*ignore, *export.void}
    # what lies below objects need not have a name in the source
    known = {*source, *export.void, *(BACKGROUND_NAMES if export.instances else ())}
    unknown = [name for name in ignore if name not in known]
    if unknown:
        raise DataError(f"--ignore names {', '.join(unknown)}; the source has {', '.join(source)}")
    background = next((name for name in names if name.casefold() in BACKGROUND_NAMES), None)
    names = [name for name in names if name not in void]
    bare = IGNORED if export.instances and any(name in BACKGROUND_NAMES for name in ignore) else 0
    if export.instances and bare == 0:
        names = ["background", *(name for name in names if name != background)]
    if len(set(names)) < len(names) or not all(name.strip() and "\n" not in name for name in names):
        raise DataError(f"class names must differ and not be empty: {names}")
    if len(names) > IGNORED:
        raise DataError(
            f"{len(names)} classes; at most {IGNORED} fit into an 8-bit mask with 255 for ignored"
        )
    ids = {name: i for i, name in enumerate(names)} | dict.fromkeys(void, IGNORED)
    if export.instances and background is not None:
        ids[background] = bare
    for name in source:
        if name.casefold() in BACKGROUND_NAMES and export.instances:
            ids.setdefault(name, bare)
    _place_others([name for name in source if name not in ids], ids, others)
    palette = None
    if export.colors:
        palette = default_palette(names, export.colors)
    values = export.values
    if values is None:
        values = {**dict(enumerate(source)), IGNORED: None}
    by_value = {v: IGNORED if name is None else ids[name] for v, name in values.items()}
    by_value.setdefault(IGNORED, IGNORED)
    return ClassTable(names, ids, palette, by_value, bare if export.instances else IGNORED)


def _place_others(missing: list[str], ids: dict[str, int], others: Others) -> None:
    if not missing:
        return
    listed = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    if others == "error":
        raise DataError(
            f"--classes lacks classes of the source: {listed}; add them, or say what becomes of them: "
            "--others ignore, --others background, or --ignore NAMES"
        )
    background = next((i for name, i in ids.items() if name.casefold() in BACKGROUND_NAMES), None)
    if others == "background" and background is None:
        raise DataError("--others background needs a class called background")
    ids.update(dict.fromkeys(missing, IGNORED if others == "ignore" or background is None else background))


def _seen(export: Export) -> str:
    """Which values the first label maps hold."""
    seen: set[int] = set()
    for sample in islice(export.samples, 20):
        if sample.labels is not None:
            seen |= set(np.unique(sample.labels()).tolist())
    return f"their ids (the first masks hold {', '.join(map(str, sorted(seen)[:30]))})"
