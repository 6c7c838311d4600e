"""Finds out which format a source is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protoseg.convert.formats import (
    ade20k,
    cityscapes,
    coco,
    cvat,
    hugging_face,
    kitti,
    label_studio,
    labelme,
    roboflow,
    supervisely,
    voc,
    yolo,
)
from protoseg.convert.source import Choices, Export, Notes, Tree
from protoseg.errors import DataError


@dataclass(frozen=True)
class Format:
    """A format that can be read."""

    title: str
    fits: Callable[[Tree], str | None]
    read: Callable[[Tree, Choices, Notes], Export]


FORMATS = {
    name: Format(module.TITLE, module.fits, module.read)
    for name, module in {
        "ade20k": ade20k, "cityscapes": cityscapes, "coco": coco, "cvat": cvat, "huggingface": hugging_face,
        "kitti": kitti, "label-studio": label_studio, "labelme": labelme, "roboflow": roboflow,
        "supervisely": supervisely, "voc": voc, "yolo": yolo,
    }.items()
}  # fmt: skip


def find_format(tree: Tree) -> tuple[str, str]:
    """Name of the format that fits, and why.

    Raises:
        DataError: If none fits or several do; if none does and a file is damaged, that error.
    """
    reasons: dict[str, str] = {}
    damage: DataError | None = None
    for name, form in FORMATS.items():
        try:
            reason = form.fits(tree)
        except DataError as error:
            damage = damage or error
            continue
        if reason is not None:
            reasons[name] = reason
    if not reasons and damage is not None:
        raise damage
    if not reasons:
        listed = "; ".join(f"{name}: {form.title}" for name, form in FORMATS.items())
        raise DataError(
            f"{tree.root / (tree.file or '')} is of no known format ({len(tree.files)} files). Known are: "
            f"{listed}. Masks that are pictures already need no converting: see docs/data.md"
        )
    if len(reasons) > 1 and "SegmentationClass" not in tree.folders:
        # XML with boxes beside another annotation
        reasons.pop("voc", None)
    if len(reasons) > 1:
        both = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
        raise DataError(
            f"several formats fit: {both}; choose one with --format {' or --format '.join(reasons)}"
        )
    return next(iter(reasons.items()))
