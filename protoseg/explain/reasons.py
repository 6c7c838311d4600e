"""What to say about a pixel, or a region: its class, the prototype that it resembles, and the runner-up.

Torch-free: the service says the same from a bundle's outputs.

Shape legend: ``C`` classes, ``K`` prototypes for each class, ``Y X`` cells of the feature map that lie on the
image, ``H W`` image.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.explain.atlas import Atlas, Prototype, read_thumbnails

ABSENT = -1.0
"""Similarity to a class without prototypes."""
MOST_REGIONS = 64
Reason = dict[str, Any]


@dataclass(frozen=True)
class Nearest:
    """The nearest prototypes of one image, cell by cell."""

    prototype: NDArray[Any]
    """(Y, X) index ``c * K + k`` of the nearest one."""
    similarity: NDArray[Any]
    """(C, Y, X) cosine with the nearest prototype of each class; -1 for a class without prototypes."""
    covered: tuple[float, float]
    """Height and width of the image in cells; the last cells may reach beyond it."""

    def cells(self, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the cell below each row and column of pixels of a map of the image, (H, W)."""
        return _scaled(shape, self.covered, self.prototype.shape)

    def pixels(self, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the pixel at the middle of each row and column of cells."""
        pair = zip(self.prototype.shape, self.covered, shape, strict=True)
        rows, columns = (
            ((np.arange(count) + 0.5) * size / covered).astype(np.int64).clip(max=size - 1)
            for count, covered, size in pair
        )
        return rows, columns


def _scaled(
    shape: tuple[int, ...], covered: tuple[float, float], limit: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = (
        ((np.arange(size) + 0.5) * cells / size).astype(np.int64).clip(max=last - 1)
        for size, cells, last in zip(shape, covered, limit, strict=True)
    )
    return rows, columns


def nearest_cells(
    prototype: NDArray[Any], similarity: NDArray[Any], size: tuple[int, int], padded: tuple[int, int]
) -> Nearest:
    """Cut maps of a padded image down to the cells whose middle lies on the image.

    Args:
        prototype: See ``Nearest``, of the padded image.
        similarity: Likewise.
        size: Height and width of the image, in pixels.
        padded: Height and width that the maps cover.
    """
    covered = tuple(
        pixels * cells / whole for pixels, cells, whole in zip(size, prototype.shape, padded, strict=True)
    )
    rows, columns = (max(1, math.ceil(value - 0.5)) for value in covered)
    return Nearest(
        prototype[:rows, :columns], similarity[:, :rows, :columns], (float(covered[0]), float(covered[1]))
    )


@dataclass(frozen=True, eq=False)
class Grounds:
    """What an image is explained by: its nearest prototypes, and what these stand for."""

    nearest: Nearest
    """Its nearest prototypes."""
    prototypes: Mapping[int, Prototype]
    """Training patches by the prototype's index."""
    num_prototypes: int
    """K."""
    thumbnails: Callable[[int], Sequence[Image.Image]]
    """Gives the patches of a prototype as pictures, by its index."""
    regions: tuple[list[Reason], int] | None = None
    """What ``Reasons.regions`` says, where somebody else has said it already; None: nobody has."""

    @classmethod
    def of(cls, nearest: Nearest, folder: Path, atlas: Atlas) -> Grounds:
        """With the training patches of an atlas and its folder."""
        return cls(nearest, atlas.by_index(), atlas.num_prototypes, partial(read_thumbnails, folder, atlas))


class Reasons:
    """Says why, for one image.

    Args:
        nearest: Its nearest prototypes.
        labels: (H, W) class ids, at any size.
        classes: Names by class id.
        num_prototypes: K.
    """

    def __init__(
        self, nearest: Nearest, labels: NDArray[np.uint8], classes: Sequence[str], num_prototypes: int
    ) -> None:
        self.nearest, self.labels, self.classes = nearest, labels, classes
        self.num_prototypes = num_prototypes

    def at(self, x: int, y: int) -> Reason:
        """The reason of a pixel, in the coordinates of ``labels``."""
        rows, columns = self.nearest.cells(self.labels.shape)
        cell = (int(rows[y]), int(columns[x]))
        similarity = self.nearest.similarity[:, *cell].astype(np.float64)
        label = int(self.labels[y, x])
        return {"x": x, "y": y, **self._said(label, int(self.nearest.prototype[cell]), similarity)}

    def _said(self, label: int, prototype: int, similarity: NDArray[np.float64]) -> Reason:
        """Record of a label, a prototype and the (C,) similarities to all classes."""
        own = prototype // self.num_prototypes
        others = similarity.copy()
        others[own] = -np.inf
        second = int(others.argmax())
        known = len(others) > 1 and others[second] > ABSENT
        return {
            "class_id": label,
            "class": self.classes[label],
            "prototype": prototype,
            "prototype_class": self.classes[own],
            "similarity": round(float(similarity[own]), 4),
            "runner_up": self.classes[second] if known else None,
            "runner_up_similarity": round(float(others[second]), 4) if known else None,
        }

    def regions(
        self, most: int = MOST_REGIONS, *, classes: Collection[int] | None = None
    ) -> tuple[list[Reason], int]:
        """The reasons of connected areas of one label, the largest first.

        An area is named by the prototype that is nearest in most of its cells; its similarities are means
        over these. Areas smaller than a cell are not seen.

        Args:
            most: Areas to tell of.
            classes: Ids of the labels to tell of; None for all.

        Returns:
            Records, each with ``share`` of the image, ``box`` (top, left, bottom, right in pixels of
            ``labels``) and ``prototype_share`` of its cells; and how many areas were left out.
        """
        import cv2  # as in data/regions.py: a training needs none of this

        near, shape = self.nearest, self.labels.shape
        grid = self.labels[np.ix_(*near.pixels(shape))]
        found = []
        for label in np.unique(grid).tolist():
            if classes is not None and label not in classes:
                continue
            mask = (grid == label).astype(np.uint8)
            _, places, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
            found += [(int(stats[n][4]), label, places, n, stats[n]) for n in range(1, len(stats))]
        found.sort(key=lambda item: -item[0])
        records = []
        for cells, label, places, number, (left, top, wide, tall, _) in found[:most]:
            inside = places == number
            counts = np.bincount(near.prototype[inside])
            prototype = int(counts.argmax())
            named = inside & (near.prototype == prototype)
            mean = near.similarity[:, named].astype(np.float64).mean(1)
            down, across = shape[0] / near.covered[0], shape[1] / near.covered[1]
            record = self._said(label, prototype, mean)
            record |= {
                "share": round(cells / grid.size, 4),
                "prototype_share": round(int(counts[prototype]) / cells, 4),
                "box": [
                    round(top * down), round(left * across),
                    min(shape[0], round((top + tall) * down)), min(shape[1], round((left + wide) * across)),
                ],
            }  # fmt: skip
            records.append(record)
        return records, len(found) - len(records)

    def grid(self) -> Reason:
        """Everything by cell, for a page that shows it at the pointer: bytes in base64, row by row.

        ``prototype`` are 16-bit little-endian indices; ``similarity`` and ``runner_up_similarity`` bytes
        ``round(255 * max(0, cosine))``, ``runner_up`` class ids (255: none).
        """
        near = self.nearest
        own = (near.prototype.astype(np.int64) // self.num_prototypes)[None]
        best = np.take_along_axis(near.similarity, own, 0)[0]
        others = near.similarity.copy()
        np.put_along_axis(others, own, -np.inf, 0)
        second, value = others.argmax(0), others.max(0)
        runner_up = np.where(value > ABSENT, second, 255)
        return {
            "rows": near.prototype.shape[0],
            "columns": near.prototype.shape[1],
            "covered": [round(value, 4) for value in near.covered],
            "prototype": _base64(near.prototype.astype("<u2")),
            "similarity": _base64(_byte(best)),
            "runner_up": _base64(runner_up.astype(np.uint8)),
            "runner_up_similarity": _base64(_byte(value)),
        }


def prototype_records(
    atlas: dict[int, Prototype], classes: Sequence[str], indices: Iterable[int]
) -> list[dict[str, Any]]:
    """What reasons refer to by ``prototype``: name, use, doubts, patches; in the order of the index."""
    records = []
    for index in sorted(set(indices) & set(atlas)):
        item = atlas[index]
        told = {"index", "number", "use_share", "precision", "doubts", "patches"}
        record = item.model_dump(mode="json", include=told)
        records.append({**record, "class": classes[item.class_id]})
    return records


def _byte(cosine: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(255 * np.clip(cosine.astype(np.float32), 0, 1)).astype(np.uint8)


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
