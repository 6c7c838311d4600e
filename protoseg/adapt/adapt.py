"""One change of the classes of a checkpoint: from images and masks to a new network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protoseg.adapt import change, describe
from protoseg.adapt.cells import Cells, image_cells, joined
from protoseg.adapt.given import Given, GivenSource, choose_meaning, find_pairs, hashes, read_given
from protoseg.adapt.others import counted, other_cells
from protoseg.adapt.rows import read_heads, with_heads
from protoseg.checkpoint import Checkpoint
from protoseg.data.lines import Entry
from protoseg.data.palette import Color
from protoseg.errors import ConfigError, DataError
from protoseg.manifest import Adaptation, ClassInfo

Kind = Literal["add", "mend", "merge", "remove", "rename"]
CELLS = 1024
"""Cells that are kept of an image that was given: of those with the class, and of the others."""
OTHER_IMAGES = 64


@dataclass(frozen=True)
class Change:
    """What is to be done."""

    kind: Kind
    """What."""
    name: str
    """The class."""
    other: str = ""
    """``merge``: the class that goes into it; ``rename``: its new name."""
    images: Path | Sequence[Entry] | None = None
    """Folder of images, a list of ``image mask`` lines, or images with their masks (``add`` and ``mend``)."""
    masks: Path | None = None
    """Folder of masks; None for anything but a folder of images."""
    value: str | None = None
    """Value or colour of the class in the masks; None finds it out."""
    color: Color | None = None
    """Colour of a new class; None takes a free one."""
    others: Path | Sequence[Path] | None = None
    """Folder of images without the class, or such images; None takes the labelled images of the training."""
    other_images: int = OTHER_IMAGES
    """Such images to look at, at most; 0: none."""


@dataclass(frozen=True)
class Adapted:
    """A changed network and what it was made of."""

    checkpoint: Checkpoint
    """The network with its description; ``path`` is still that of the old one."""
    given: list[Given]
    """The images and masks of the class, none where none are needed."""
    label: int | None
    """Id of the class now; None for one that was removed."""
    kept: list[int]
    """What the id of each class was; of a new one the number of classes that there were."""
    merged: bool
    """Whether the class has taken in another."""
    given_source: GivenSource | None
    """The images as those of a training; None where none are needed."""
    notes: list[str]
    """What the user should know."""
    other_seconds: float
    """How long the images beside them took."""


def adapt(source: Checkpoint, wanted: Change, name: str) -> Adapted:
    """Change the classes of a network; nothing is written.

    Args:
        source: The network, on any device.
        wanted: What is to be done.
        name: What the new network is called.

    Raises:
        ConfigError: If the change does not fit the classes.
        DataError: If images or masks cannot be used.
    """
    info, heads = source.info, read_heads(source.segmenter)
    names, classes = [item.name for item in info.classes], list(info.classes)
    check(source, wanted)
    become = {item: item for item in names}
    made = Adaptation(
        change=wanted.kind, classes=[wanted.name, *filter(None, [wanted.other])], source=info.name,
        source_sha256=info.weights_sha256, head=info.best_head(), images={}, masks="", others=0,
    )  # fmt: skip
    given: list[Given] = []
    other_seconds = 0.0
    shown: GivenSource | None = None
    notes: list[str] = []
    label = names.index(wanted.name) if wanted.name in names else None
    if wanted.kind in ("add", "mend"):
        if wanted.kind == "add":
            classes.append(describe.new_class(info, wanted.name, wanted.color))
        assert wanted.images is not None
        entries: Sequence[Entry]
        if isinstance(wanted.images, Path):
            entries = find_pairs(info.data, wanted.images, wanted.masks)
        else:
            entries = wanted.images
        meaning = choose_meaning(info, entries, wanted.name, wanted.value)
        notes.append(f"masks: {meaning.text}")
        given = read_given(info, entries, meaning, wanted.name)
        own = own_cells(source, given)
        rest, count, other_seconds = _others(source, wanted, label, notes)
        if label is None:
            heads = change.add(heads, own, rest, stages=len(given) > 1)
        else:
            heads = change.mend(heads, label, own, rest)
        made = made.model_copy(update={"images": hashes(entries), "masks": meaning.text, "others": count})
    elif wanted.kind == "merge":
        rest, count, other_seconds = _others(source, wanted, None, notes)
        if rest is None:
            raise DataError(
                "--merge needs images: those of the training have gone, so name a folder with --others"
            )
        heads = change.merge(heads, names.index(wanted.name), names.index(wanted.other), rest)
        made = made.model_copy(update={"others": count})
        become[wanted.other] = wanted.name
    elif wanted.kind == "rename":
        become[wanted.name] = wanted.other
        classes = [item.model_copy(update={"name": become[item.name]}) for item in classes]
    gone = {"merge": wanted.other, "remove": wanted.name}.get(wanted.kind)
    if wanted.kind == "remove":
        del become[wanted.name]
    kept = [index for index, item in enumerate(classes) if item.name != gone]
    heads, classes = heads.take(kept), [classes[index] for index in kept]
    new_info = describe.described(info, name, classes, become, made)
    changed = Checkpoint(with_heads(source.segmenter, info, heads), new_info, source.path)
    place = _place(classes, become.get(wanted.name, wanted.name))
    if given:
        assert place is not None
        shown = GivenSource(entries, meaning, place, new_info)
    return Adapted(changed, given, place, kept, wanted.kind == "merge", shown, notes, other_seconds)


def own_cells(source: Checkpoint, given: Sequence[Given]) -> Cells:
    """Cells of the images that were given."""
    shown = counted(given, "images of the class")
    return joined(image_cells(source, item.image, item.of_class, item.valid, CELLS) for item in shown)


def check(source: Checkpoint, wanted: Change) -> None:
    """Refuse what cannot be done before an image is read.

    Raises:
        ConfigError: With what to do.
    """
    info, kind = source.info, wanted.kind
    if not bool(source.segmenter.bank.active.any()):
        raise ConfigError(
            f"{info.name} has no prototypes (method {info.method}): train with method.prototypes=true, as "
            "method.preset=protoseg does, to change its classes"
        )
    if kind == "add":
        describe.check_new(info, wanted.name, f"--mend {wanted.name} learns more of it")
    else:
        describe.check_known(info, wanted.name)
    if kind == "rename":
        describe.check_new(info, wanted.other, f"--merge {wanted.other} {wanted.name} makes one of both")
    if kind == "merge":
        describe.check_known(info, wanted.other)
        if wanted.name == wanted.other:
            raise ConfigError(f"--merge {wanted.name} {wanted.name}: name two classes")
    if kind in ("remove", "merge") and len(info.classes) <= 2:
        raise ConfigError(f"{info.name} has {len(info.classes)} classes; a network needs two")
    if kind in ("add", "mend") and wanted.images is None:
        raise ConfigError(f"--{kind} {wanted.name} needs --images, and --masks where that is a folder")


def _others(
    source: Checkpoint, wanted: Change, label: int | None, notes: list[str]
) -> tuple[Cells | None, int, float]:
    """Cells of images beside those that were given, their number, and seconds; without any a note says so."""
    if wanted.other_images == 0:
        return None, 0, 0.0
    start = time.perf_counter()
    try:
        cells, count = other_cells(source, wanted.others, wanted.other_images, label)
    except DataError as error:
        if wanted.others is not None:
            raise
        notes.append(
            f"the images of the training are not here ({str(error).splitlines()[0]}): {wanted.name} will be "
            "seen where it is not; name a folder of images without it with --others"
        )
        return None, 0, 0.0
    given = wanted.others if wanted.others is None or isinstance(wanted.others, Path) else "those given"
    notes.append(f"others: {count} images of {given or 'the training'}")
    return cells, count, time.perf_counter() - start


def _place(classes: Sequence[ClassInfo], name: str) -> int | None:
    names = [item.name for item in classes]
    return names.index(name) if name in names else None
