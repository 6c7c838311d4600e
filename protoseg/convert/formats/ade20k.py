"""ADE20K SceneParsing: value 0 is ignored, value k is class k - 1."""

from __future__ import annotations

from protoseg.convert.formats.maps import map_loader
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_text
from protoseg.errors import DataError

TITLE = "ADE20K SceneParsing"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    names = [n.rpartition("/")[2] for n in tree.files]
    if "objectInfo150.txt" in names:
        return "objectInfo150.txt is there"
    masks = [n for n in tree.files if "annotations" in n.split("/") and "/ADE_" in n and n.endswith(".png")]
    return f"{masks[0]} is named as it names them" if masks else None


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the masks below ``annotations``.

    Raises:
        DataError: If class names are missing.
    """
    info = next((name for name in tree.files if name.endswith("objectInfo150.txt")), None)
    if info is not None:
        classes = _names(read_text(tree.root / info), str(tree.root / info))
    elif choices.classes is not None:
        classes = choices.classes
    else:
        raise DataError(
            f"{tree.root} has no objectInfo150.txt, which names the classes; put it there, or give --classes"
        )
    images = Images(tree, choices.images, notes)
    samples = []
    for mask in tree.files:
        parts = mask.split("/")
        if not mask.endswith(".png") or "annotations" not in parts[:-1]:
            continue
        at = max(i for i, part in enumerate(parts) if part == "annotations")
        stem = "/".join([*parts[:at], "images", *parts[at + 1 :]])[: -len(".png")]
        name = images.find(stem, where=mask, stem=True)
        if name is not None:
            samples.append(
                Sample(images.path(name), name, labels=map_loader(tree.root / mask), part=part_of(name))
            )
    samples += images.unannotated()
    values: dict[int, str | None] = {0: None, **{i + 1: name for i, name in enumerate(classes)}}
    ids = {name: str(i + 1) for i, name in enumerate(classes)}
    return Export(samples, len(samples), classes, instances=False, values=values, source_ids=ids)


def _names(text: str, where: str) -> list[str]:
    """Last column of the table; of synonyms the first counts where that stays unique."""
    rows = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
    with expected(where):
        if [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)):
            raise DataError("ids do not go from 1 on")
        full = [row[-1].strip() for row in rows]
    short = [name.partition(",")[0].strip() for name in full]
    return [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
