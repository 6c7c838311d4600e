"""YOLO segmentation (Ultralytics): ``data.yaml`` and a tree ``labels`` beside the tree ``images``."""

from __future__ import annotations

from typing import Any

from protoseg.convert.draw import Shape, as_points, outline
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Part, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_text, read_yaml
from protoseg.errors import DataError

TITLE = "YOLO segmentation text (Ultralytics)"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    texts = [name for name in tree.files if name.endswith(".txt") and "labels" in name.split("/")[:-1]]
    meta = _meta(tree) if texts else None
    return f"{meta[0]} holds names, and there is {texts[0]}" if meta is not None else None


def _meta(tree: Tree) -> tuple[str, Any] | None:
    files = [name for name in tree.files if name.endswith((".yaml", ".yml"))]
    for name in files if tree.file is None else [name for name in files if name == tree.file]:
        value = read_yaml(tree.root / name)
        if isinstance(value, dict) and isinstance(value.get("names"), (list, dict)):
            return name, value
    for name in tree.files:
        if name.rpartition("/")[2] in ("classes.txt", "obj.names"):
            return name, {
                "names": [line.strip() for line in read_text(tree.root / name).splitlines() if line]
            }
    return None


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the label files.

    Raises:
        DataError: If a line is damaged, a class is unknown, or there are boxes only.
    """
    meta = _meta(tree)
    if meta is None:
        raise DataError(f"{tree.root} has no data.yaml (or classes.txt) with names")
    with expected(str(tree.root / meta[0])):
        names = meta[1]["names"]
        table = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
    images = Images(tree, choices.images, notes)
    samples = []
    polygons = boxes = 0
    for file in tree.files:
        parts = file.split("/")
        if not file.endswith(".txt") or "labels" not in parts[:-1]:
            continue
        at = max(i for i, part in enumerate(parts[:-1]) if part == "labels")
        stem = "/".join([*parts[:at], "images", *parts[at + 1 :]])[: -len(".txt")]
        name = images.find(stem, where=file, stem=True)
        shapes: list[Shape] = []
        for number, line in enumerate(read_text(tree.root / file).splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            where = f"{file}, line {number}"
            with expected(where):
                label, points = int(float(fields[0])), [float(field) for field in fields[1:]]
                if label not in table:
                    raise DataError(f"class {label}, but {meta[0]} names {sorted(table)}")
                if len(points) == 4:
                    boxes += 1
                    notes.warn("objects that are only a box and are not drawn", where)
                    continue
                if len(points) % 2:
                    raise DataError(f"{len(points)} coordinates, expected pairs")
                polygons += 1
                shapes.append(Shape(table[label], outline([as_points(points)], share=True), where))
        if name is not None:
            samples.append(Sample(images.path(name), name, shapes, part=_part(meta[1], name)))
    if boxes and not polygons:
        raise DataError(
            f"{tree.root} has {boxes} boxes and no polygons: this is YOLO detection; export segmentation"
        )
    samples += images.unannotated(lambda name: _part(meta[1], name))
    ids = {name: str(number) for number, name in table.items()}
    return Export(samples, len(samples), [table[i] for i in sorted(table)], source_ids=ids)


def _part(meta: dict[str, Any], name: str) -> Part:
    """The division that ``train``, ``val`` and ``test`` of the YAML state, else the path's."""
    for part in ("train", "val", "test"):
        places = meta.get(part)
        for place in places if isinstance(places, list) else [places]:
            text = str(place or "").replace("\\", "/").strip("/")
            while text.startswith(("../", "./")):
                text = text.partition("/")[2]
            if text and f"/{name}".startswith(f"/{text}/"):
                return part
    return part_of(name)
