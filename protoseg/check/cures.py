"""Settings that make masks readable, proposed from all values that masks hold: only those that do no harm.

A proposal never leaves a class without pixels that has some, never turns background into another class, and
says
what it does by the classes' names. Where the values do not tell, nothing is proposed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from protoseg.config.data import DataConfig
from protoseg.data.masks import TRANSPARENT
from protoseg.data.palette import voc_palette

BACKGROUND_NAMES = frozenset({"background", "bg", "_background_", "back", "none", "nothing", "other"})
_LISTED = 12
"""More unknown values than these are none that were forgotten."""
_VOC_BORDER = "224,224,192"


@dataclass(frozen=True)
class Seen:
    """What all masks that were looked at hold."""

    known: frozenset[int]
    """Classes with a pixel."""
    unknown: Mapping[str, int]
    """Pixels by value without a class."""
    label_map: Mapping[str, int | str] | None
    """The map in use; None where values are class ids."""


def propose(data: DataConfig, names: Sequence[str], seen: Seen) -> str:
    """A sentence with the settings that cure unknown values, or with what to find out first."""
    values = [value for value in seen.unknown if value != TRANSPARENT]
    if len(names) == 1:
        return add_background(names[0], data, {*values, *map(str, seen.known)})
    if TRANSPARENT in seen.unknown and not values:
        return _transparent(names, seen)
    if TRANSPARENT in seen.unknown or data.reduce_zero_label or _built_in(data) or len(values) > _LISTED:
        return "say in data.label_map what each value is (docs/data.md, Masks)"
    if any("," in value for value in values):
        return _colors(data, names, seen, values)
    return _values(names, seen, values)


def _built_in(data: DataConfig) -> bool:
    return isinstance(data.label_map, str) and not data.label_map.endswith(".txt")


def add_background(name: str, data: DataConfig, values: Collection[str]) -> str:
    """What to do with a single class, by the values of the masks."""
    if name.lower() in BACKGROUND_NAMES:
        return "name the other classes in data.classes, too"
    classes = f"data.classes={_quoted(['background', name])}"
    if data.label_map is None and set(values) == {"0", "1"}:
        return f"add the background, which is what the masks call 0: {classes}"
    others = [value for value in values if value != "0"]
    if (
        data.label_map is None
        and set(values) == {"0", *others}
        and len(others) == 1
        and _may_be_class(others[0])
    ):
        table = {"0": "background", others[0]: name}
        return f"add the background, which is what the masks call 0: {classes} {setting(table)}"
    return f"add the background, with its value in data.label_map: {classes}"


def _transparent(names: Sequence[str], seen: Seen) -> str:
    what = "pixels of alpha 0 have no colour"
    table = dict(seen.label_map) if seen.label_map is not None else _identity(names)
    without = [name for index, name in enumerate(names) if index not in seen.known]
    if len(without) > 1:
        return (
            f'{what}: give data.label_map the key "{TRANSPARENT}", with the class that they are, or "ignore"'
        )
    back = _background(names)
    if without and without != [names[0 if back is None else back]]:
        return (
            f'{what}: give data.label_map the key "{TRANSPARENT}", with the class that they are, or "ignore"'
        )
    target = without[0] if without else "ignore"
    why = f"as {target} has no other pixels" if without else "if they are to be ignored"
    return f"{what}: {setting({**table, TRANSPARENT: target})} ({why})"


def _colors(data: DataConfig, names: Sequence[str], seen: Seen, colors: Sequence[str]) -> str:
    words = "say in data.label_map what each colour is, or give it the labelmap.txt of the annotation tool"
    if seen.label_map is not None:
        return _forgotten(names, seen, colors) or words
    own = [",".join(map(str, color)) for color in data.palette or []]
    voc = [",".join(map(str, color)) for color in voc_palette(len(names))]
    for palette in (own, voc):
        if palette and set(palette) == set(colors) - {_VOC_BORDER}:
            border = {_VOC_BORDER: "ignore"} if _VOC_BORDER in colors and _VOC_BORDER not in palette else {}
            return setting({**dict(zip(palette, names, strict=True)), **border})
    if len(names) == 2 and len(colors) == 2 and "0,0,0" in colors:
        back = _background(names)
        if back is not None:
            other = next(color for color in colors if color != "0,0,0")
            return setting({"0,0,0": names[back], other: names[1 - back]})
    return words


def _values(names: Sequence[str], seen: Seen, values: Sequence[str]) -> str:
    words = (
        "say in data.label_map what each value is (docs/data.md, Masks), or name more classes in data.classes"
    )
    if seen.label_map is not None:
        return _forgotten(names, seen, values) or words
    count = len(names)
    present = seen.known | {int(value) for value in values if value.removeprefix("-").isdecimal()}
    if list(values) == [str(count)] and set(range(1, count + 1)) <= present:
        if 0 not in present:
            return "ids start from 1: " + setting({str(i + 1): name for i, name in enumerate(names)})
        if _background(names) is None:
            return (
                "ids start from 1. If 0 is unlabelled: data.reduce_zero_label=true; if 0 is the background: "
                f"data.classes={_quoted(['background', *names])}"
            )
        return words
    if count == 2 and len(values) == 1 and seen.known <= {0} and _may_be_class(values[0]):
        back = _background(names)
        first = 0 if back is None else back
        return setting({"0": names[first], values[0]: names[1 - first]})
    return _forgotten(names, seen, values) or words


def _forgotten(names: Sequence[str], seen: Seen, values: Sequence[str]) -> str:
    """Values beside those that the masks' classes have; empty where classes have no pixels without them."""
    table = dict(seen.label_map) if seen.label_map is not None else _identity(names)
    without = [name for index, name in enumerate(names) if index not in seen.known]
    targets = {names[t] if isinstance(t, int) and t < len(names) else str(t) for t in table.values()}
    if len(without) == len(values) == 1 and without[0] not in targets:
        return f"as {without[0]} has no pixels without it: {setting({**table, values[0]: without[0]})}"
    if without or any(value.startswith("index") for value in values):
        return ""
    ignored = setting({**table, **dict.fromkeys(values, "ignore")})
    return f"if these pixels are of no class: {ignored}"


def _may_be_class(value: str) -> bool:
    """Whether a value may stand for the only other class; odd ones mean that there are no data."""
    return value.isdecimal() and (0 < int(value) < 256 or value == "65535")


def two_values(names: Sequence[str]) -> str:
    """The setting for masks of 0 and 255, where there are two classes."""
    if len(names) != 2:
        return "name two classes in data.classes and say in data.label_map which one 0 and 255 are"
    back = _background(names)
    first = 0 if back is None else back
    return setting({"0": names[first], "255": names[1 - first]})


def _background(names: Sequence[str]) -> int | None:
    found = [index for index, name in enumerate(names) if name.lower() in BACKGROUND_NAMES]
    return found[0] if len(found) == 1 else None


def _identity(names: Sequence[str]) -> dict[str, int | str]:
    return {str(index): name for index, name in enumerate(names)}


def setting(table: Mapping[str, int | str]) -> str:
    """``data.label_map=...`` as it is given on a command line."""
    return f"data.label_map={_quoted(table)}"


def _quoted(value: object) -> str:
    # a quote within quotes, as a shell takes it
    text = json.dumps(value, ensure_ascii=False).replace("'", "'\\''")
    return f"'{text}'"
