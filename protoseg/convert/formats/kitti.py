"""KITTI semantics: ``training/image_2`` and ``training/semantic`` with the ids of Cityscapes."""

from __future__ import annotations

from protoseg.convert.formats.maps import CITYSCAPES_COLORS, CITYSCAPES_NAMES, cityscapes_values, map_loader
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Part, Sample, Tree

TITLE = "KITTI semantics"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    both = {"image_2", "semantic"} <= tree.folders
    return "it has folders image_2 and semantic" if both else None


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the masks below ``semantic``; images of ``testing`` are for the benchmark."""
    images = Images(tree, choices.images, notes)
    samples = []
    for mask in tree.files:
        parts = mask.split("/")
        if mask.endswith(".png") and parts[-2:-1] == ["semantic"]:
            name = images.find("/".join([*parts[:-2], "image_2", parts[-1]]), where=mask)
            if name is not None:
                samples.append(Sample(images.path(name), name, labels=map_loader(tree.root / mask)))
    samples += images.unannotated(_part)
    return Export(
        samples, len(samples), list(CITYSCAPES_NAMES), instances=False, values=cityscapes_values(),
        colors=CITYSCAPES_COLORS,
    )  # fmt: skip


def _part(name: str) -> Part:
    return "test" if name.split("/")[0] == "testing" else ""
