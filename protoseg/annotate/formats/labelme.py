"""labelme: a JSON of polygons for each image."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.annotate.draft import NOTHING, Draft, Labels
from protoseg.files import write_text_whole
from protoseg.manifest import ClassInfo

TITLE = "labelme, a JSON of polygons for each image"
PLACE = "labelme"
VERSION = "5.0.0"
"""Of the form, in which every labelme since reads it."""
BACKGROUND = "background"
Ring = NDArray[np.float64]


def write(
    target: Path, drafts: Iterable[Draft], classes: Sequence[ClassInfo], *, simplify: float = 0.0
) -> int:
    """Write ``NAME.json`` for each image, and ``labels.txt``, each whole or not at all.

    Outlines lie between pixels, so that without ``simplify`` they are exact where a pixel belongs to the
    outline that its centre lies in. Polygons have no holes: large ones come first, what lies in a hole is
    drawn over them, and a hole with nothing in it is a polygon called ``background``. A file that is there
    already stays: somebody may have worked on it.

    Args:
        target: Folder.
        drafts: Images.
        classes: All, by id.
        simplify: Largest distance in pixels that an outline may be moved for the sake of fewer points.

    Returns:
        How many images have a file.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = [item.name for item in classes]
    known = names if BACKGROUND in names else [BACKGROUND, *names]
    write_text_whole(target / "labels.txt", "".join(f"{name}\n" for name in ["__ignore__", *known]))
    written: dict[str, str] = {}
    for draft in drafts:
        stem = str(PurePosixPath(draft.name).with_suffix(""))
        file = target / f"{stem}.json"
        if stem in written:
            reason = f"{written[stem]} has the file {file}, too; labelme goes by names without their ending"
            sys.stderr.write(f"skipped: {draft.path}: {reason}\n")
            continue
        written[stem] = draft.name
        if file.exists():
            sys.stderr.write(f"note: {file} is there already and stays as it is; remove it to have it anew\n")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = draft.labels.shape
        shapes = [_shape(ring, names, index) for index, ring in polygons(draft.labels, simplify)]
        value = {
            "version": VERSION, "flags": {}, "shapes": shapes,
            "imagePath": Path(os.path.relpath(draft.path.absolute(), file.parent.absolute())).as_posix(),
            "imageData": None, "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        write_text_whole(file, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    return len(written)


def _shape(ring: Ring, names: Sequence[str], index: int) -> dict[str, Any]:
    return {
        "label": BACKGROUND if index == NOTHING else names[index], "points": ring.tolist(),
        "group_id": None, "description": "", "shape_type": "polygon", "flags": {},
    }  # fmt: skip


def polygons(labels: Labels, simplify: float = 0.0) -> list[tuple[int, Ring]]:
    """Outlines that, drawn one over another, give the labels.

    Args:
        labels: ``(H, W)`` class ids, 255 for nothing.
        simplify: Largest distance in pixels that an outline may be moved.

    Returns:
        Class id and points ``(N, 2)``, N at least 3, as (x, y), in the order to be drawn; 255 only where it
        covers the hole of another.
    """
    import cv2  # as in protoseg.annotate.draft

    found: list[tuple[float, int, Ring]] = []
    covered = np.zeros(labels.shape, np.uint8)
    present = [index for index in np.unique(labels).tolist() if index != NOTHING]
    for index in present:
        for ring, holes in _outlines(labels == index):
            found.append((_area(ring), index, ring))
            for hole in holes:
                # the corners of a hole's outline lie between pixels, those next to it are of the class itself
                cv2.fillPoly(covered, [np.round(hole - 0.5).astype(np.int32)], 1)
    if covered.any():
        found += [(_area(ring), NOTHING, ring) for ring, _ in _outlines((labels == NOTHING) & (covered > 0))]
    # a region is smaller than the outline of the one whose hole it lies in
    found.sort(key=lambda item: -item[0])
    drawn = []
    for _, index, ring in found:
        points = _simplified(ring, simplify)
        if len(points) >= 3:
            drawn.append((index, points))
    return drawn


def _outlines(mask: NDArray[np.bool_]) -> Iterator[tuple[Ring, list[Ring]]]:
    """Outer outline and holes of each region; corners lie half way between a pixel in and one out."""
    import contourpy  # with matplotlib: no other format needs it

    padded = np.pad(mask, 1).astype(np.float64)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        # the centre of the padded picture's first pixel lies at -0.5
        rings = [points[a : b - 1] - 0.5 for a, b in pairwise(offsets)]
        yield rings[0], rings[1:]


def _area(ring: Ring) -> float:
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _simplified(ring: Ring, simplify: float) -> Ring:
    if simplify > 0:
        import cv2

        # in whole numbers of half a pixel, which single precision holds exactly
        moved = cv2.approxPolyDP((ring * 2).astype(np.float32), simplify * 2, True)
        return np.asarray(moved[:, 0] / 2, np.float64)
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    corners: Ring = ring[corner]
    return corners
