"""What is said about the classes of a map: JSON records, the Hugging Face reply."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from protoseg.manifest import Manifest
from serving.pixels.maps import Labels, Scores, class_pixels
from serving.pixels.png import encode_png


def class_records(
    labels: Labels,
    confidence: Scores | None,
    label_probability: Scores | None,
    manifest: Manifest,
    classes: frozenset[int] | None,
) -> list[dict[str, Any]]:
    """Id, name, colour, pixels, fraction and mean scores of the classes present.

    The mean of ``label_probability`` is called ``mean_agreement``, as everywhere on the wire.
    """
    count = len(manifest.classes)
    pixels = class_pixels(labels, count)
    flat = labels.ravel()
    sums = {
        name: np.bincount(flat, weights=scores.ravel(), minlength=count)
        for name, scores in (("mean_confidence", confidence), ("mean_agreement", label_probability))
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
