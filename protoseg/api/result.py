"""What a model says about one image: maps, areas, pictures, files. Torch-free: the client gives it too.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.api.inputs import Origin, Pixels
from protoseg.api.notebook import encode, legend_html, small_overlay
from protoseg.data.regions import Polygon, geojson, polygons_by_class, rle_by_class
from protoseg.draw.colours import OVERLAY_OPACITY, overlay_picture
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo
from protoseg.predict.table import ResultTable, part_file
from protoseg.predict.write import save_part


@dataclass(frozen=True)
class ClassArea:
    """What an image holds of one class."""

    id: int
    """Class id, as in ``Result.labels``."""
    name: str
    """Name."""
    color: tuple[int, int, int]
    """Colour, RGB in [0, 255]."""
    pixels: int
    """Pixels with this label."""
    fraction: float
    """Share of the image in [0, 1]."""
    confidence: float | None
    """Mean confidence of these pixels in [0, 1]."""
    agreement: float | None
    """Mean agreement of these pixels in [0, 1]."""


@dataclass(frozen=True)
class ModelInfo:
    """Which model a result is from."""

    name: str
    """Name of the run."""
    version: str
    """Optimiser step of a checkpoint, version of a bundle."""
    head: str
    """Head that labelled: ``linear``, ``prototype`` or ``fused``; empty if not known."""
    classes: tuple[ClassInfo, ...]
    """All classes by id, with names and colours."""


@dataclass(frozen=True, eq=False)
class Result:
    """The segmentation of one image, upright and at the image's own size."""

    labels: NDArray[np.uint8]
    """``(H, W)`` uint8 class ids."""
    confidence: NDArray[np.float32] | None
    """``(H, W)`` float32, probability of the label in [0, 1]; None if not asked for or the graph has none."""
    agreement: NDArray[np.float32] | None
    """``(H, W)`` float32, probability in [0, 1] that the linear head gives to the label, whichever head chose
    it: low where the mask may be wrong. None as for ``confidence``."""
    info: ModelInfo
    """The model behind it."""
    origin: Origin
    """Where the image is from."""
    load_image: Callable[[], Pixels] = field(repr=False)
    """Gives the image's pixels."""

    def __repr__(self) -> str:
        shares = ", ".join(f"{item.name} {item.fraction:.1%}" for item in self.classes)
        height, width = self.labels.shape
        return f"<Result {self.origin.name}: {width}x{height} pixels; {shares}>"

    @cached_property
    def image(self) -> Pixels:
        """``(H, W, C)`` uint8, the pixels that were segmented, upright."""
        return self.load_image()

    @property
    def path(self) -> Path | None:
        """The image's file, if it was one."""
        return self.origin.path

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colours of the classes by id, RGB in [0, 255]."""
        return [item.color for item in self.info.classes]

    @cached_property
    def classes(self) -> tuple[ClassArea, ...]:
        """Classes that are in the image by id, with their areas and mean scores."""
        flat, count = self.labels.ravel(), len(self.info.classes)
        pixels = np.bincount(flat, minlength=count)[:count]

        def means(scores: NDArray[np.float32] | None) -> list[float | None]:
            if scores is None:
                return [None] * count
            sums = np.bincount(flat, weights=scores.ravel(), minlength=count)
            return [float(total) / max(int(number), 1) for total, number in zip(sums, pixels, strict=False)]

        confidence, agreement = means(self.confidence), means(self.agreement)
        return tuple(
            ClassArea(
                index, item.name, item.color, int(pixels[index]), int(pixels[index]) / flat.size,
                confidence[index], agreement[index],
            )
            for index, item in enumerate(self.info.classes)
            if pixels[index]
        )  # fmt: skip

    def mask(self, name: str | int) -> NDArray[np.bool_]:
        """``(H, W)`` bool, where the class is.

        Args:
            name: Name or id of a class.

        Raises:
            DataError: If there is no such class.
        """
        names = [item.name for item in self.info.classes]
        index = names.index(name) if name in names else name
        if not isinstance(index, int) or not 0 <= index < len(names):
            raise DataError(f"there is no class {name!r}; the model has {', '.join(names)}")
        where: NDArray[np.bool_] = self.labels == index
        return where

    def overlay(self, alpha: float = OVERLAY_OPACITY) -> Image.Image:
        """The classes' colours over the image, with outlines, as ``protoseg.predict`` draws them.

        Args:
            alpha: Share of the colour in [0, 1].

        Returns:
            An RGB picture of the image's size. A black class leaves the image as it is.

        Raises:
            DataError: If ``alpha`` is out of range, or the image has gone meanwhile.
        """
        if not 0 <= alpha <= 1:
            raise DataError(f"alpha must be in [0, 1], got {alpha}")
        return Image.fromarray(overlay_picture(self.image, self.labels, self.palette, alpha))

    def to_pil(self) -> Image.Image:
        """The mask as a palette picture (mode ``P``) whose values are class ids."""
        picture = Image.fromarray(self.labels)
        picture.putpalette([channel for color in self.palette for channel in color])
        return picture

    def save(
        self,
        target: str | os.PathLike[str],
        *,
        overlay: bool = False,
        confidence: bool = False,
        disagreement: bool = False,
        legend: bool = True,
    ) -> list[Path]:
        """Write the mask, and what else is asked for, each file whole or not at all.

        Args:
            target: A folder, made if need be, or a file. In a folder files are called as by
                ``protoseg.predict``: ``masks/NAME.png``, ``overlays/NAME.jpg``, ``confidence/NAME.png``,
                ``disagreement/NAME.png`` (255 is 1), and ``predictions.csv`` says whose they are. An image
                keeps its name, and another of the same name becomes ``NAME_2``: nobody else's result is
                written over. A file named ``.png`` gets the mask, ``.jpg`` or ``.webp`` the overlay, and is
                replaced.
            overlay: In a folder: the overlay too.
            confidence: In a folder: the confidence too.
            disagreement: In a folder: 1 - agreement too, bright where the mask may be wrong.
            legend: Name the colours below the overlay; without it the file has the image's size.

        Returns:
            The files written, the mask first.

        Raises:
            DataError: If a file cannot be written, or the result has not what is asked for.
        """
        file, more = Path(target).expanduser(), overlay or confidence or disagreement
        if file.suffix and not file.is_dir():
            if more:
                raise DataError(f"{file} is one file; name a folder to get more than the mask")
            return [self._save_file(file, legend=legend)]
        wanted = {"masks": True, "overlays": overlay, "confidence": confidence, "disagreement": disagreement}
        parts = [part for part, asked in wanted.items() if asked]
        for part, scores in (("confidence", self.confidence), ("disagreement", self.agreement)):
            if part in parts and scores is None:
                raise DataError(
                    f"this result has no {part}: it was not asked for, or the graph has no such output"
                )
        table = ResultTable(file)
        name = table.reserve_one(self.origin.source, self.origin.name)
        written = []
        for part in parts:
            path = file / part_file(part, name)
            self._save_part(part, path, legend=legend)
            written.append(path)
        table.done(name, parts, self.info.head, self.info.name, self.info.version)
        table.write()
        return written

    def _save_part(self, part: str, path: Path, *, legend: bool) -> None:
        image = self.image if part == "overlays" else None
        save_part(path, part, self.labels, self.info.classes, legend=legend, image=image,
                  confidence=self.confidence, label_probability=self.agreement)  # fmt: skip

    def _save_file(self, file: Path, *, legend: bool) -> Path:
        kinds = {".png": "masks", ".jpg": "overlays", ".jpeg": "overlays", ".webp": "overlays"}
        if file.suffix.lower() not in kinds:
            raise DataError(f"{file}: give a folder, or a file named .png (mask), .jpg or .webp (overlay)")
        self._save_part(kinds[file.suffix.lower()], file, legend=legend)
        return file

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> dict[str, Any]:
        """The image in COCO's form: an annotation with exact run lengths for each class present.

        Args:
            image_id: Id of the image.
            first_id: Id of the first annotation, for files of several images.

        Returns:
            ``images``, ``categories`` (their ids are the class ids) and ``annotations`` (``iscrowd`` is 1,
            as COCO asks for uncompressed run lengths; ``bbox`` is [x, y, width, height] in pixels).
        """
        height, width = self.labels.shape
        runs = rle_by_class(self.labels)
        annotations = []
        for number, item in enumerate(self.classes):
            where = self.labels == item.id
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            annotations.append(
                {
                    "id": first_id + number, "image_id": image_id, "category_id": item.id,
                    "segmentation": {"size": [height, width], "counts": runs[item.id]},
                    "area": item.pixels, "bbox": [int(value) for value in box], "iscrowd": 1,
                }
            )  # fmt: skip
        name = self.path.name if self.path is not None else self.origin.name
        return {
            "images": [{"id": image_id, "file_name": name, "width": width, "height": height}],
            "categories": [
                {"id": index, "name": item.name, "color": list(item.color)}
                for index, item in enumerate(self.info.classes)
            ],
            "annotations": annotations,
        }

    def to_polygons(self, simplify: float = 0.0) -> dict[str, list[Polygon]]:
        """Polygons of the classes present by name: [[outer ring, hole, ...], ...], closed rings of [x, y].

        Points are pixel centres; regions of fewer than three corners are left out.

        Args:
            simplify: Pixels that a ring may deviate.
        """
        found = polygons_by_class(self.labels, simplify)
        return {item.name: found[item.id] for item in self.classes if item.id in found}

    def to_geojson(self, simplify: float = 0.0) -> dict[str, Any]:
        """A FeatureCollection with a MultiPolygon for each class (pixel coordinates, y downwards).

        Args:
            simplify: Pixels that a ring may deviate.
        """
        records = [{**vars(item), "color": list(item.color)} for item in self.classes]
        return geojson(polygons_by_class(self.labels, simplify), records)

    def _shown(self) -> Image.Image:
        try:
            return small_overlay(self.image, self.labels, self.palette)
        except DataError:
            # the file has gone; the mask is still here
            return small_overlay(None, self.labels, self.palette)

    def _repr_png_(self) -> bytes:
        """The overlay for a notebook."""
        return encode(self._shown(), "PNG")

    def _repr_html_(self) -> str:
        """The overlay with a legend for a notebook."""
        largest_first = sorted(self.classes, key=lambda item: -item.pixels)
        return legend_html(
            self._shown(), self.origin.name,
            [(c.name, c.color, (c.fraction, c.confidence, c.agreement)) for c in largest_first],
        )  # fmt: skip
