"""Where the classes of a label map are: COCO run lengths, polygons, GeoJSON. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.errors import DataError

Labels = NDArray[np.uint8]
# closed rings of [x, y], the outer one first, then its holes
Polygon = list[list[list[float]]]


class TooManyRegionsError(DataError):
    """A map whose runs or corners are more than a caller allows."""


def rle_by_class(labels: Labels, most: int | None = None) -> dict[int, list[int]]:
    """COCO run lengths of each class present: column order, the first run is of other pixels.

    Args:
        labels: ``(H, W)`` uint8.
        most: Runs allowed; None for any number.

    Raises:
        TooManyRegionsError: If there are more.
    """
    flat = labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    if most is not None and len(starts) > most:
        raise TooManyRegionsError(f"the mask has {len(starts)} runs")
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    result = {}
    for index in np.unique(values).tolist():
        mine = values == index
        edges = np.stack((starts[mine], ends[mine]), axis=1).ravel()
        counts = np.diff(np.concatenate(([0], edges, [flat.size])))
        result[index] = (counts[:-1] if counts[-1] == 0 else counts).tolist()
    return result


def polygons_by_class(
    labels: Labels, simplify: float = 0.0, most: int | None = None
) -> dict[int, list[Polygon]]:
    """Polygons of each class present, as [[outer ring, hole, ...], ...] of closed rings of [x, y].

    Points are pixel centres; regions of fewer than three corner points have no area and are left
    out (``rle`` is exact).

    Args:
        labels: ``(H, W)`` uint8.
        simplify: Largest distance in pixels that a ring may be moved; 0 keeps every corner.
        most: Points allowed; None for any number.

    Raises:
        TooManyRegionsError: If there are more.
    """
    import cv2  # a training needs none of this, and may run where OpenCV is not

    result: dict[int, list[Polygon]] = {}
    points = 0
    for index in np.unique(labels).tolist():
        contours, hierarchy = cv2.findContours(
            (labels == index).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        polygons: list[Polygon] = []
        place: dict[int, int] = {}
        for number, contour in enumerate(contours):
            ring = cv2.approxPolyDP(contour, simplify, True) if simplify else contour
            points += len(ring)
            if most is not None and points > most:
                raise TooManyRegionsError("the mask has too many corners")
            if len(ring) < 3:
                continue
            corners = ring[:, 0].tolist()
            corners.append(corners[0])
            parent = int(hierarchy[0][number][3])
            if parent < 0:
                place[number] = len(polygons)
                polygons.append([corners])
            elif parent in place:
                polygons[place[parent]].append(corners)
        if polygons:
            result[index] = polygons
    return result


def geojson(polygons: Mapping[int, list[Polygon]], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A FeatureCollection with one MultiPolygon for each class (pixel coordinates, y downwards)."""
    features = [
        {
            "type": "Feature",
            "id": record["id"],
            "properties": {key: value for key, value in record.items() if key != "id"},
            "geometry": {"type": "MultiPolygon", "coordinates": polygons.get(record["id"], [])},
        }
        for record in records
    ]
    return {"type": "FeatureCollection", "features": features}
