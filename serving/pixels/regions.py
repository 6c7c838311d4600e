"""Where the classes are: COCO run lengths, polygons, GeoJSON."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from serving.errors import ServingError
from serving.pixels.maps import Labels

# closed rings of [x, y], the outer one first, then its holes
Polygon = list[list[list[float]]]

# JSON of more runs or points would cost more memory than the image that was sent
MAX_RUNS = 2_000_000


def rle_by_class(labels: Labels) -> dict[int, list[int]]:
    """COCO run lengths of each class present: column order, the first run is of other pixels.

    Raises:
        ServingError: 413 when there are more than two million runs.
    """
    flat = labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    if len(starts) > MAX_RUNS:
        raise ServingError(413, "result_too_large", f"the mask has {len(starts)} runs; ask for output=mask")
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    result = {}
    for index in np.unique(values).tolist():
        mine = values == index
        edges = np.stack((starts[mine], ends[mine]), axis=1).ravel()
        counts = np.diff(np.concatenate(([0], edges, [flat.size])))
        result[index] = (counts[:-1] if counts[-1] == 0 else counts).tolist()
    return result


def polygons_by_class(labels: Labels, simplify: float) -> dict[int, list[Polygon]]:
    """Polygons of each class present, as [[outer ring, hole, ...], ...] of closed rings of [x, y].

    Points are pixel centres; regions of fewer than three corner points have no area and are left
    out (``rle`` is exact).

    Args:
        labels: ``(H, W)`` uint8.
        simplify: Largest distance in pixels that a ring may be moved; 0 keeps every corner.

    Raises:
        ServingError: 413 when there are more than two million points.
    """
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
            if points > MAX_RUNS:
                raise ServingError(
                    413, "result_too_large", "the mask has too many corners; ask for output=mask"
                )
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


def geojson(polygons: dict[int, list[Polygon]], records: list[dict[str, Any]]) -> dict[str, Any]:
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
