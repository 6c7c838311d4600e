"""Finds the training patches nearest to each prototype.

Shape legend: ``C`` classes, ``K`` prototypes for each class, ``P = C * K``, ``Y X`` feature map, ``N`` its
cells that lie on the image.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from protoseg.checkpoint import CheckpointInfo
from protoseg.data.images import resize_image, resize_mask
from protoseg.data.lists import data_root
from protoseg.data.sources import Source
from protoseg.draw.colours import as_rgb
from protoseg.errors import DataError
from protoseg.explain.atlas import THUMBNAIL, Atlas, Patch, Prototype
from protoseg.explain.reasons import Nearest, nearest_cells
from protoseg.inference import image_batch, inference
from protoseg.models.segmenter import Segmenter

NUM_PATCHES = 6
SMALLEST_PATCH = 24
MOSTLY = 0.5
"""Below this share of patches, or of pixels, with its own class a prototype is doubtful."""
NEVER_USED = "never used"
"""No labelled pixel of its class is nearer to it than to its class's others."""
OTHER_PATCHES = "patches of other classes"
"""Most of its nearest patches are labelled otherwise."""
OTHER_PIXELS = "pixels of other classes"
"""Most labelled pixels that are nearest to it have another class."""


@dataclass(order=True)
class _Found:
    """A candidate; the least similar one is the first to go, of equals the later image."""

    cosine: float
    order: int
    patch: Patch = field(compare=False)
    thumbnail: Image.Image = field(compare=False)


@dataclass(frozen=True)
class FoundPatches:
    """An atlas with its thumbnails."""

    atlas: Atlas
    thumbnails: dict[str, list[Image.Image]]
    """By the name of the strip."""
    skipped: list[str]
    """A text for each image that could not be used."""


def default_patch(crop: tuple[int, int]) -> int:
    """Side of a patch in pixels: a third of the training crop's shorter side, at least 24."""
    return max(SMALLEST_PATCH, min(crop) // 3)


def nearest_of(segmenter: Segmenter, image: NDArray[np.uint8]) -> tuple[Nearest, torch.Tensor]:
    """The nearest prototypes of an image of the working size, and all cosines.

    Args:
        segmenter: Network and prototypes, in evaluation mode.
        image: (h, w, C_in) uint8.

    Returns:
        What ``reasons`` explains by, and (C, K, Y, X) cosines on the CPU.
    """
    height, width = image.shape[:2]
    network, bank = segmenter.network, segmenter.bank
    features = network(image_batch([image], bank.prototypes.device)).features
    cosine = bank.similarity_map(features)[0].float().cpu()
    cosine = torch.where(bank.active.cpu()[:, None, None, None], cosine, -1.0)
    padded = network.padded_size(height, width)
    found = nearest_cells(
        cosine.flatten(0, 1).argmax(0).numpy(), cosine.amax(1).numpy(), (height, width), padded
    )
    return found, cosine


def find_patches(
    segmenter: Segmenter,
    info: CheckpointInfo,
    source: Source,
    *,
    num_images: int,
    patch: int | None = None,
    seen: Callable[[], object] = lambda: None,
) -> FoundPatches:
    """Look at labelled images one by one and keep, for each prototype, the nearest place of each image.

    Images go through the network whole, at the working size. All pixels are candidates, whatever their
    label, so that a prototype that stands for something else than its class shows itself.

    Args:
        segmenter: Network and prototypes, on the device to use; its mode is restored.
        info: Its description.
        source: Labelled images of the training.
        num_images: Largest number of images to look at, spread evenly over the source.
        patch: Side of a patch in pixels of the working size; None takes ``default_patch``.
        seen: Called after each image.

    Raises:
        DataError: If no image can be used.
        ValueError: If there are no prototypes.
    """
    bank = segmenter.bank
    if not bool(bank.active.any()):
        raise ValueError("this network has no prototypes")
    tally = _Tally(bank.num_classes, bank.num_prototypes, info, patch or default_patch(info.input.crop))
    skipped: list[str] = []
    chosen = np.unique(np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int))
    with inference(segmenter):
        for index in chosen.tolist():
            try:
                own, mask = _pair(source, index)
            except DataError as error:
                skipped.append(str(error))
                continue
            finally:
                seen()
            image, target = resize_image(own, info.input.resize), resize_mask(mask, info.input.resize)
            nearest, cosine = nearest_of(segmenter, image)
            rows, columns = nearest.prototype.shape
            rows_at, columns_at = nearest.pixels(target.shape)
            values = cosine[..., :rows, :columns].flatten(2).numpy()
            label = target[np.ix_(rows_at, columns_at)].reshape(-1)
            tally.count(values, nearest.prototype.reshape(-1), label)
            cells = np.stack(np.meshgrid(rows_at, columns_at, indexing="ij"), -1).reshape(-1, 2)
            tally.keep(values, cells, label, image, own.shape[:2], image_name(source.name(index), info))
    if len(skipped) == len(chosen):
        first = skipped[0] if skipped else "there are none"
        raise DataError(f"none of the {len(chosen)} labelled images can be used: {first}")
    entries, thumbnails = tally.entries(bank.active.cpu().numpy())
    atlas = Atlas(
        name=info.name, step=info.step, weights_sha256=info.weights_sha256,
        classes=[item.name for item in info.classes], num_prototypes=bank.num_prototypes,
        num_images=len(chosen) - len(skipped), patch=tally.side, side=THUMBNAIL, prototypes=entries,
    )  # fmt: skip
    return FoundPatches(atlas, thumbnails, skipped)


class _Tally:
    """What the images seen so far say of each prototype: its nearest patches, and whose pixels it wins."""

    def __init__(self, classes: int, prototypes: int, info: CheckpointInfo, side: int) -> None:
        self.info, self.side = info, side
        self.best: list[list[_Found]] = [[] for _ in range(classes * prototypes)]
        self.used, self.won, self.right = (np.zeros((classes, prototypes)) for _ in range(3))
        self.images = 0

    def count(
        self, values: NDArray[np.float32], nearest: NDArray[np.int64], label: NDArray[np.uint8]
    ) -> None:
        """Add an image's cells: (C, K, N) cosines, (N,) flat index of the nearest, (N,) labels."""
        classes, prototypes = self.used.shape
        for class_id in np.unique(label):
            if class_id == self.info.ignore_index:
                continue
            mine = label == class_id
            counts = np.bincount(nearest[mine], minlength=self.used.size).reshape(self.used.shape)
            self.won += counts
            if class_id < classes:  # others are known not to be of any, as in masks of one class
                own = values[class_id][:, mine].argmax(0)
                self.used[class_id] += np.bincount(own, minlength=prototypes)
                self.right[class_id] += counts[class_id]

    def keep(
        self,
        values: NDArray[np.float32],
        cells: NDArray[np.int64],
        label: NDArray[np.uint8],
        image: NDArray[np.uint8],
        own: tuple[int, ...],
        name: str,
    ) -> None:
        """Keep an image's nearest cell for each prototype where it is among the nearest of all images.

        Args:
            values: (C, K, N) cosines.
            cells: (N, 2) row and column of each cell in the working image.
            label: (N,) labels.
            image: (h, w, C_in) uint8, the working image.
            own: (height, width) of the original.
            name: What to call it.
        """
        self.images += 1
        for kept, cosines in zip(self.best, values.reshape(-1, len(cells)), strict=True):
            cell = int(cosines.argmax())
            value = float(cosines[cell])
            if len(kept) == NUM_PATCHES and value <= kept[0].cosine:
                continue
            cut = _cut(image, own, (int(cells[cell, 0]), int(cells[cell, 1])), self.side)
            patch = Patch(
                image=name, cosine=round(value, 4), label=_class_name(int(label[cell]), self.info),
                y=cut.y, x=cut.x, box=cut.box,
            )  # fmt: skip
            push = heapq.heappush if len(kept) < NUM_PATCHES else heapq.heappushpop
            push(kept, _Found(value, -self.images, patch, cut.thumbnail))

    def entries(self, active: NDArray[np.bool_]) -> tuple[list[Prototype], dict[str, list[Image.Image]]]:
        """The prototypes of (C,) active classes, and their thumbnails by the name of the strip."""
        entries, thumbnails = [], {}
        for index, kept in enumerate(self.best):
            class_id, number = divmod(index, self.used.shape[1])
            if not active[class_id]:
                continue
            ordered = sorted(kept, reverse=True)
            patches = [item.patch for item in ordered]
            total, wins = self.used[class_id].sum(), self.won[class_id, number]
            share = float(self.used[class_id, number] / total) if total else None
            precision = float(self.right[class_id, number] / wins) if wins else None
            name = f"{index:04d}.jpg"
            thumbnails[name] = [item.thumbnail for item in ordered]
            entries.append(
                Prototype(
                    index=index, class_id=class_id, number=number, patches=patches, strip=name,
                    use_share=None if share is None else round(share, 4),
                    precision=None if precision is None else round(precision, 4),
                    doubts=_doubts(patches, self.info.classes[class_id].name, share, precision),
                )
            )  # fmt: skip
        return entries, thumbnails


def _pair(source: Source, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image and mask at their own size.

    Raises:
        DataError: If one cannot be used.
    """
    image, mask = source.image(index), source.mask(index)
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"{source.name(index)}: the image is {image.shape[0]}x{image.shape[1]}, its mask {mask.shape[0]}x"
            f"{mask.shape[1]} (height x width); they must be equal"
        )
    return image, mask


def _class_name(label: int, info: CheckpointInfo) -> str | None:
    """Name of a class; None where the mask is ignored."""
    known = label < len(info.classes) and label != info.ignore_index
    return info.classes[label].name if known else None


def image_name(name: str, info: CheckpointInfo) -> str:
    """What to call a training image: its path below the data's root, never a path of this machine."""
    if info.data.kind != "files":
        return name
    path = Path(name)
    root = data_root(info.data)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


@dataclass(frozen=True)
class _Cut:
    y: int
    x: int
    box: tuple[int, int, int, int]
    thumbnail: Image.Image


def _cut(image: NDArray[np.uint8], own: tuple[int, ...], at: tuple[int, int], side: int) -> _Cut:
    """A square around a pixel of the working image, moved to lie inside, in pixels of the original."""
    height, width = image.shape[:2]
    tall, wide = min(side, height), min(side, width)
    top = min(max(0, at[0] - tall // 2), height - tall)
    left = min(max(0, at[1] - wide // 2), width - wide)
    cut = Image.fromarray(np.ascontiguousarray(as_rgb(image[top : top + tall, left : left + wide])))
    down, across = own[0] / height, own[1] / width
    box = (round(top * down), round(left * across), round((top + tall) * down), round((left + wide) * across))
    y, x = int((at[0] + 0.5) * down), int((at[1] + 0.5) * across)
    return _Cut(y, x, box, cut.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def _doubts(patches: list[Patch], own: str, share: float | None, precision: float | None) -> list[str]:
    labels = [item.label for item in patches if item.label is not None]
    checks = {
        NEVER_USED: share == 0,
        OTHER_PATCHES: bool(labels) and labels.count(own) < MOSTLY * len(labels),
        OTHER_PIXELS: precision is not None and precision < MOSTLY,
    }
    return [text for text, holds in checks.items() if holds]
