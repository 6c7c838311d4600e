"""Roboflow "Semantic Segmentation Masks": ``_classes.csv`` and ``NAME_mask.png`` beside each image."""

from __future__ import annotations

from protoseg.convert.formats.maps import map_loader
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_rows
from protoseg.errors import DataError

TITLE = "Roboflow semantic masks (_classes.csv)"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    names = _files(tree)
    return f"{names[0]} is there" if names and any(n.endswith("_mask.png") for n in tree.files) else None


def _files(tree: Tree) -> list[str]:
    return [name for name in tree.files if name.rpartition("/")[2] == "_classes.csv"]


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the masks of every part (train, valid, test).

    Raises:
        DataError: If parts name their classes differently.
    """
    images = Images(tree, choices.images, notes)
    values: dict[int, str] = {}
    samples = []
    for file in _files(tree):
        with expected(str(tree.root / file)):
            table = {int(row["Pixel Value"]): row["Class"] for row in read_rows(tree.root / file)}
        if values and table != values:
            raise DataError(
                f"{tree.root / file} names other classes than the first _classes.csv: {table} and {values}"
            )
        values = table
        folder = file.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        for mask in tree.files:
            if not mask.endswith("_mask.png") or not mask.startswith(prefix) or "/" in mask[len(prefix) :]:
                continue
            stem = mask[len(prefix) : -len("_mask.png")]
            name = images.find(stem, folder, mask, stem=True)
            if name is not None:
                load = map_loader(tree.root / mask)
                samples.append(Sample(images.path(name), name, labels=load, part=part_of(name)))
    samples += images.unannotated()
    ordered = {value: values[value] for value in sorted(values)}
    ids = {name: str(value) for value, name in ordered.items()}
    return Export(
        samples, len(samples), list(ordered.values()), instances=False, values={**ordered}, source_ids=ids
    )
