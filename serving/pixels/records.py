"""Turns label maps into what goes over the wire: PNG, RLE, polygons, overlay, JSON records."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import simplejpeg
from isal import isal_zlib
from numpy.typing import NDArray

from protoseg.manifest import Manifest
from serving.errors import ServingError

Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]

# JSON of more runs or points would cost more memory than the image that was sent
MAX_RUNS = 2_000_000
_FILTER_UP = 2
_SPARE_COLOR = (224, 224, 192)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def encode_png(image: Labels, palette: bytes | None = None) -> bytes:
    """Write an 8-bit PNG: every row as difference to the one above, deflated by isa-l.

    Args:
        image: ``(H, W)`` uint8.
        palette: RGB bytes of the values from 0 on (at most 256 colours), or None for grey.
    """
    height, width = image.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = image[0]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 3 if palette else 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette) if palette else b"",
            _chunk(b"IDAT", isal_zlib.compress(rows, 1)),
            _chunk(b"IEND", b""),
        )
    )


def make_palette(manifest: Manifest) -> bytes:
    """RGB bytes of 256 colours: the classes', then a pale one for the ignore value and the rest."""
    colors = [tuple(item.color) for item in manifest.classes]
    colors += [_SPARE_COLOR] * (256 - len(colors))
    return bytes(channel for color in colors for channel in color)


def scores_to_bytes(scores: Scores) -> Labels:
    """[0, 1] as uint8, rounded."""
    return np.asarray(cv2.convertScaleAbs(np.clip(scores, 0, 1), alpha=255), np.uint8)


def keep_classes(labels: Labels, classes: frozenset[int] | None, other: int) -> Labels:
    """Labels with every class that is not in ``classes`` set to ``other``."""
    if classes is None:
        return labels
    table = np.full(256, other, np.uint8)
    for index in classes:
        table[index] = index
    return table[labels]


def class_pixels(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class."""
    histogram = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])
    # float32 counts are exact up to 2**24
    if labels.size <= 2**24:
        return histogram.ravel()[:num_classes].astype(np.int64)
    return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]


def class_records(
    labels: Labels,
    confidence: Scores | None,
    agreement: Scores | None,
    manifest: Manifest,
    classes: frozenset[int] | None,
) -> list[dict[str, Any]]:
    """Id, name, colour, pixels, fraction, mean confidence and mean agreement of the classes present."""
    count = len(manifest.classes)
    pixels = class_pixels(labels, count)
    flat = labels.ravel()
    sums = {
        name: np.bincount(flat, weights=scores.ravel(), minlength=count)
        for name, scores in (("mean_confidence", confidence), ("mean_agreement", agreement))
        if scores is not None
    }
    records = []
    for index in np.flatnonzero(pixels).tolist():
        if classes is not None and index not in classes:
            continue
        number = int(pixels[index])
        record: dict[str, Any] = {
            "id": index,
            "name": manifest.classes[index].name,
            "color": list(manifest.classes[index].color),
            "pixels": number,
            "fraction": round(number / labels.size, 6),
        }
        record |= {name: round(float(total[index]) / number, 4) for name, total in sums.items()}
        records.append(record)
    return records


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


def polygons_by_class(labels: Labels, simplify: float) -> dict[int, list[list[list[list[float]]]]]:
    """Polygons of each class present, as [[outer ring, hole, ...], ...] of closed rings of [x, y].

    Points are pixel centres; regions of fewer than three corner points have no area and are left
    out (``rle`` is exact).

    Args:
        labels: ``(H, W)`` uint8.
        simplify: Largest distance in pixels that a ring may be moved; 0 keeps every corner.

    Raises:
        ServingError: 413 when there are more than two million points.
    """
    result: dict[int, list[list[list[list[float]]]]] = {}
    points = 0
    for index in np.unique(labels).tolist():
        contours, hierarchy = cv2.findContours(
            (labels == index).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        polygons: list[list[list[list[float]]]] = []
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


def geojson(
    polygons: dict[int, list[list[list[list[float]]]]], records: list[dict[str, Any]]
) -> dict[str, Any]:
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


def encode_overlay(
    image: Labels, labels: Labels, palette: bytes, alpha: float, classes: frozenset[int] | None
) -> bytes:
    """Blend class colours over the image and write a JPEG.

    Args:
        image: ``(H, W, C)`` uint8; grey is shown as RGB, a fourth channel is dropped.
        labels: ``(H, W)`` uint8 class ids.
        palette: RGB bytes of 256 colours.
        alpha: Share of the colour in [0, 1].
        classes: Classes that are coloured; None for all.
    """
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    rgb = np.ascontiguousarray(rgb)
    colors = cv2.LUT(cv2.merge([labels] * 3), np.frombuffer(palette, np.uint8).reshape(1, 256, 3))
    blended = cv2.addWeighted(rgb, 1 - alpha, colors, alpha, 0)
    if classes is not None:
        table = np.zeros(256, np.uint8)
        table[list(classes)] = 1
        cv2.copyTo(rgb, 1 - table[labels], blended)
    data: bytes = simplejpeg.encode_jpeg(blended, quality=85, colorspace="RGB")
    return data


def hf_segments(labels: Labels, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hugging Face image segmentation reply: label, score, and a black and white PNG in base64."""
    segments = []
    for record in records:
        mask = np.where(labels == record["id"], np.uint8(255), np.uint8(0))
        segments.append(
            {
                "label": record["name"],
                "score": record.get("mean_confidence"),
                "mask": base64.b64encode(encode_png(mask)).decode("ascii"),
            }
        )
    return segments
