"""What a changed network is called: classes, how its masks are read, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.data import DataConfig
from protoseg.data.classes import IGNORE_NAMES
from protoseg.data.masks import label_map_entries
from protoseg.data.palette import Color, default_palette
from protoseg.errors import ConfigError
from protoseg.manifest import Adaptation, ClassInfo


def check_known(info: CheckpointInfo, name: str) -> int:
    """Id of a class.

    Raises:
        ConfigError: If there is none of that name.
    """
    names = [item.name for item in info.classes]
    if name not in names:
        raise ConfigError(f"{info.name} has no class {name!r}; it has {', '.join(names)}")
    return names.index(name)


def check_new(info: CheckpointInfo, name: str, instead: str) -> None:
    """Refuse a name that a class has already, or that means no class.

    Args:
        info: Has the classes.
        name: The name.
        instead: What to do where a class has it.

    Raises:
        ConfigError: With what to do.
    """
    if name in [item.name for item in info.classes]:
        raise ConfigError(f"{info.name} has a class {name!r} already; {instead}")
    if not name.strip() or name.lower() in IGNORE_NAMES:
        raise ConfigError(
            f"{name!r} is no name of a class; {', '.join(sorted(IGNORE_NAMES))} mean ignored pixels"
        )


def new_class(info: CheckpointInfo, name: str, color: Color | None) -> ClassInfo:
    """The class that gets the next id; without a colour it gets one unlike the others'.

    Raises:
        ConfigError: If its id would be the ignored value.
    """
    names, label = [item.name for item in info.classes], len(info.classes)
    if label >= min(info.ignore_index, 255):
        raise ConfigError(
            f"{name} would have the id {label}, but {info.ignore_index} is the value of ignored pixels"
        )
    known = {item.name: item.color for item in info.classes}
    return ClassInfo(name=name, color=color or default_palette([*names, name], known)[-1])


def relabelled(
    data: DataConfig, before: Sequence[str], become: Mapping[str, str], after: Sequence[ClassInfo]
) -> DataConfig:
    """Data settings by which the masks of the training are read as the classes are now.

    Args:
        data: Those of the training.
        before: Names of the classes by id.
        become: What each of them is called now; one that is left out is ignored.
        after: The classes now.

    Raises:
        ConfigError: If the masks are drawn, and cannot be read otherwise.
    """
    names = [item.name for item in after]
    same = [become.get(name) for name in before] == names[: len(before)]
    update: dict[str, object] = {"classes": names, "palette": [item.color for item in after]}
    if data.kind == "synthetic":
        if not same:
            raise ConfigError(
                "the embedded scenes have the classes that they have; write them to files with protoseg "
                "scenes and train on those, to merge or remove one"
            )
        return data.model_copy(update=update)
    entries = label_map_entries(data, before)
    if entries is None and same:
        return data.model_copy(update=update)
    table: dict[str, int | str] = {}
    for value, target in (entries or {str(i): i for i in range(len(before))}).items():
        if isinstance(target, str) and target not in before and target.strip().isdecimal():
            target = int(target)
        name = before[target] if isinstance(target, int) and 0 <= target < len(before) else str(target)
        table[value] = become.get(name, "ignore")
    return data.model_copy(update={**update, "label_map": table, "reduce_zero_label": False})


def described(
    info: CheckpointInfo, name: str, classes: Sequence[ClassInfo], become: Mapping[str, str], made: Adaptation
) -> CheckpointInfo:
    """Description of the changed network; what was measured of the old one is left out.

    Raises:
        ConfigError: See ``relabelled``.
    """
    data = relabelled(info.data, [item.name for item in info.classes], become, classes)
    return info.model_copy(update={
        "name": name, "classes": list(classes), "data": data, "metrics": {},
        "adapted": [*(info.adapted or []), made],
    })  # fmt: skip
