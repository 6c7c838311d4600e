"""Label Studio: tasks with predictions as brush regions, and the labelling interface they fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from protoseg.annotate.draft import Draft
from protoseg.files import write_text_whole, write_whole
from protoseg.manifest import ClassInfo

TITLE = "Label Studio, tasks with brush regions"
PLACE = "label-studio"
TASKS, INTERFACE, CLASSES = "tasks.json", "config.xml", "classes.txt"
_SIZES = (3, 4, 8, 16)
_LONGEST = 1 << _SIZES[-1]


@dataclass(frozen=True)
class Controls:
    """Names in a labelling interface."""

    from_name: str = "label"
    """Of the brush."""
    to_name: str = "image"
    """Of the image that it paints on."""
    image_key: str = "image"
    """Key of the task's data that holds the image's address."""


def write(
    target: Path, drafts: Iterable[Draft], classes: Sequence[ClassInfo], *, address: Callable[[Path], str],
    model_version: str = "protoseg",
) -> int:  # fmt: skip
    """Write tasks, labelling interface and class names, each whole or not at all; other files there stay.

    Args:
        target: Folder.
        drafts: Images.
        classes: All, by id.
        address: Where Label Studio finds an image.
        model_version: Name of the predictions' model.

    Returns:
        How many tasks there are.
    """
    number = 0

    def fill(beside: Path) -> None:
        nonlocal number
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            for number, draft in enumerate(drafts, start=1):
                task = {
                    "data": {Controls.image_key: address(draft.path), "name": draft.name},
                    "predictions": [prediction(draft, classes, model_version)],
                }
                text = json.dumps(task, ensure_ascii=False, separators=(",", ":"))
                file.write(("[\n" if number == 1 else ",\n") + text)
            file.write("\n]\n" if number else "[]\n")

    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / TASKS, fill)
    write_text_whole(target / INTERFACE, interface(classes))
    write_text_whole(target / CLASSES, "".join(f"{item.name}\n" for item in classes))
    return number


def interface(classes: Sequence[ClassInfo]) -> str:
    """The labelling interface: a brush with a label of each class, in its colour."""
    labels = "\n".join(
        f'    <Label value={quoteattr(item.name)} background="#{bytes(item.color).hex()}"/>'
        for item in classes
    )
    names = Controls()
    return (
        f'<View>\n  <Image name="{names.to_name}" value="${names.image_key}" zoom="true"/>\n'
        f'  <BrushLabels name="{names.from_name}" toName="{names.to_name}">\n{labels}\n  </BrushLabels>\n'
        "</View>\n"
    )


def prediction(
    draft: Draft, classes: Sequence[ClassInfo], model_version: str, controls: Controls | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A prediction of a task: one brush region for each class, the largest first.

    Args:
        draft: The image.
        classes: All, by id.
        model_version: Name of the model.
        controls: Names in the labelling interface.
        labels: Label of the interface by class name; classes without one are left out. None: their names.
    """
    controls = controls or Controls()
    height, width = draft.labels.shape
    pixels = np.bincount(draft.labels.ravel(), minlength=256)
    regions = []
    for index in sorted(draft.classes(), key=lambda i: -int(pixels[i])):
        name = classes[index].name
        label = name if labels is None else labels.get(name)
        if label is None:
            continue
        region: dict[str, Any] = {
            "id": f"class{index}", "type": "brushlabels", "origin": "prediction",
            "from_name": controls.from_name, "to_name": controls.to_name,
            "original_width": width, "original_height": height, "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(draft.labels == index), "brushlabels": [label]},
        }  # fmt: skip
        score = draft.mean_confidence(index)
        regions.append(region if score is None else {**region, "score": round(score, 4)})
    found: dict[str, Any] = {"model_version": model_version, "result": regions}
    score = draft.mean_confidence()
    return found if score is None else {**found, "score": round(score, 4)}


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """A mask ``(H, W)`` as Label Studio's run lengths, which ``protoseg.convert.rle`` describes.

    All four bytes of a pixel are 255 in the mask and 0 beyond, as Label Studio's own encoder has them.

    Returns:
        Bytes, as numbers in [0, 255].
    """
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], edges))
    lengths = 4 * np.diff(np.concatenate((starts, [flat.size])))
    # a run that no size can hold becomes several
    parts = -(-lengths // _LONGEST)
    values = np.repeat(flat[starts], parts)
    sizes = np.full(int(parts.sum()), _LONGEST, np.int64)
    sizes[np.cumsum(parts) - 1] = lengths - (parts - 1) * _LONGEST
    choice = np.searchsorted([1 << size for size in _SIZES], sizes)
    size_bits = np.array(_SIZES)[choice]
    # flag 1 (a value that repeats), 2 bits of choice, the length less one, the value
    codes = (4 + choice) << (size_bits + 8) | (sizes - 1) << 8 | np.where(values, 255, 0)
    widths = size_bits + 11
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    body = bits[np.arange(32) >= 32 - widths[:, None]]
    head = f"{4 * flat.size:032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    stream = np.concatenate((np.frombuffer(head.encode(), np.uint8) - ord("0"), body))
    packed: list[int] = np.packbits(stream).tolist()
    return packed
