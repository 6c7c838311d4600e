"""What a model says about one image: maps, areas, pictures, files. Torch-free: the client gives it too.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.api.areas import ClassArea as ClassArea
from protoseg.api.areas import ModelInfo as ModelInfo
from protoseg.api.areas import class_areas, coco_record
from protoseg.api.explanation import Explanation
from protoseg.api.inputs import Origin, Pixels
from protoseg.api.notebook import Row, encode, legend_html, small_overlay
from protoseg.data.find import EXPLAIN_FOLDER, NOVELTY
from protoseg.data.regions import Polygon, geojson, polygons_by_class
from protoseg.draw.colours import IGNORED, OVERLAY_OPACITY, overlay_picture
from protoseg.errors import DataError
from protoseg.explain.reasons import Grounds, Reasons
from protoseg.explain.record import image_record, write_reasons
from protoseg.explain.sheet import Explained, point_sheet
from protoseg.manifest import NOVEL
from protoseg.predict.table import ResultTable, part_file
from protoseg.predict.write import novel_share, save_part

_HATCHED = np.uint16(65535)


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
    novelty: NDArray[np.float32] | None = None
    """``(H, W)`` float32 in [0, 1], how unlike everything labelled a pixel is; novel from 0.5 on, the
    threshold of ``protoseg novelty``. None if not asked for."""
    grounds: Grounds | None = field(default=None, repr=False)
    """What ``explain`` explains by; None if not asked for."""

    def __repr__(self) -> str:
        shares = ", ".join(f"{item.name} {item.fraction:.1%}" for item in self.classes)
        novel = "" if self.novel_share is None else f"; novel {self.novel_share:.1%}"
        height, width = self.labels.shape
        return f"<Result {self.origin.name}: {width}x{height} pixels; {shares}{novel}>"

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
        return class_areas(self.labels, self.info.classes, self.confidence, self.agreement)

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

    @property
    def novel(self) -> NDArray[np.bool_] | None:
        """``(H, W)`` bool, the pixels above the threshold of novelty; None if not asked for."""
        return None if self.novelty is None else self.novelty >= NOVEL

    @property
    def novel_share(self) -> float | None:
        """Share of these pixels in [0, 1]; None if not asked for."""
        return novel_share(self.novelty)

    def explain(self, x: int, y: int) -> Explanation:
        """Why a pixel has its class.

        Args:
            x: Column, from 0.
            y: Row, from 0.

        Raises:
            DataError: If it was not asked for, or there is no such pixel.
        """
        grounds, (height, width) = self._grounds(), self.labels.shape
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(
                f"there is no pixel x={x}, y={y}; the image has {width}x{height} (width x height)"
            )
        names = [item.name for item in self.info.classes]
        said = Reasons(grounds.nearest, self.labels, names, grounds.num_prototypes).at(int(x), int(y))
        index = said["prototype"]

        def draw() -> Image.Image:
            pixel = Explained(self.origin.name, self.image, self.labels, grounds, self.info.classes)
            return point_sheet(pixel, said)

        return Explanation(
            said["x"], said["y"], said["class_id"], said["class"], grounds.prototypes[index],
            said["prototype_class"], said["similarity"], said["runner_up"], said["runner_up_similarity"],
            partial(grounds.thumbnails, index), draw,
        )  # fmt: skip

    def reasons(self) -> dict[str, Any]:
        """Why, by region: what ``protoseg predict --explain`` writes as JSON.

        Returns:
            ``regions``, connected areas of one label, the largest first, with ``class``, ``prototype``,
            ``prototype_class``, ``similarity``, ``runner_up``, ``share`` and ``box``;
            ``regions_left_out``, their number; and the ``prototypes`` that are named, with their patches.

        Raises:
            DataError: If it was not asked for.
        """
        return image_record(self.labels, self._grounds(), self.info.classes)

    def _grounds(self) -> Grounds:
        if self.grounds is None:
            raise DataError("this result has no explanation; ask for it: model(image, explain=True)")
        return self.grounds

    def overlay(self, alpha: float = OVERLAY_OPACITY, *, novel: bool = False) -> Image.Image:
        """The classes' colours over the image, with outlines, as ``protoseg.predict`` draws them.

        Args:
            alpha: Share of the colour in [0, 1].
            novel: Hatch the pixels above the threshold of novelty.

        Returns:
            An RGB picture of the image's size. A black class leaves the image as it is.

        Raises:
            DataError: If ``alpha`` is out of range, novelty was not asked for, or the image has gone
                meanwhile.
        """
        if not 0 <= alpha <= 1:
            raise DataError(f"alpha must be in [0, 1], got {alpha}")
        if novel and self.novelty is None:
            raise DataError("this result has no novelty; ask for it: model(image, novelty=True)")
        labels = self._hatched() if novel else self.labels
        return Image.fromarray(overlay_picture(self.image, labels, self.palette, alpha))

    def _hatched(self) -> NDArray[Any]:
        """The labels with a value that has no colour, and so is hatched, where pixels are novel."""
        return self.labels if self.novel is None else np.where(self.novel, _HATCHED, self.labels)

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
        novelty: bool = False,
        explain: bool = False,
        legend: bool = True,
    ) -> list[Path]:
        """Write the mask, and what else is asked for, each file whole or not at all.

        Args:
            target: A folder, made if need be, or a file. In a folder files are called as by
                ``protoseg.predict``: ``masks/NAME.png``, ``overlays/NAME.jpg``, ``confidence/NAME.png``,
                ``disagreement/NAME.png`` and ``novelty/NAME.png`` (255 is 1), ``explain/NAME.json``,
                ``.png`` and ``.jpg``, and ``predictions.csv`` says whose they are. An image keeps its name,
                and another of the same name becomes ``NAME_2``: nobody else's result is written over. A file
                named ``.png`` gets the mask, ``.jpg`` or ``.webp`` the overlay, and is replaced.
            overlay: In a folder: the overlay too.
            confidence: In a folder: the confidence too.
            disagreement: In a folder: 1 - agreement too, bright where the mask may be wrong.
            novelty: In a folder: novelty too, novel from 128 on.
            explain: In a folder: why, too, as a record, a map of the nearest prototypes and a picture.
            legend: Name the colours below the overlay; without it the file has the image's size.

        Returns:
            The files written, the mask first.

        Raises:
            DataError: If a file cannot be written, or the result has not what is asked for.
        """
        file = Path(target).expanduser()
        more = overlay or confidence or disagreement or novelty or explain
        if file.suffix and not file.is_dir():
            if more:
                raise DataError(f"{file} is one file; name a folder to get more than the mask")
            return [self._save_file(file, legend=legend)]
        wanted = {"masks": True, "overlays": overlay, "confidence": confidence, "disagreement": disagreement,
                  NOVELTY: novelty}  # fmt: skip
        parts = [part for part, asked in wanted.items() if asked]
        grounds = self._grounds() if explain else None
        self._refuse_lacking(parts)
        table = ResultTable(file)
        name = table.reserve_one(self.origin.source, self.origin.name)
        written = []
        for part in parts:
            path = file / part_file(part, name)
            self._save_part(part, path, legend=legend)
            written.append(path)
        if grounds is not None:
            written += self._save_reasons(file / EXPLAIN_FOLDER / name, grounds)
        table.done(name, parts, self.info.head, self.info.name, self.info.version, self.novel_share)
        table.write()
        return written

    def _refuse_lacking(self, parts: Sequence[str]) -> None:
        """Refuse parts of a folder that this result has not the numbers for."""
        for part, scores in (("confidence", self.confidence), ("disagreement", self.agreement),
                             (NOVELTY, self.novelty)):  # fmt: skip
            if part in parts and scores is None:
                raise DataError(
                    f"this result has no {part}: it was not asked for, or the graph has no such output"
                )

    def _save_reasons(self, base: Path, grounds: Grounds) -> list[Path]:
        step = int(self.info.version) if self.info.version.isdecimal() else self.info.version
        about = {"image": self.origin.source, "run": self.info.name, "step": step, "head": self.info.head}
        return write_reasons(base, self.image, self.labels, grounds, self.info.classes, about)

    def _save_part(self, part: str, path: Path, *, legend: bool) -> None:
        image = self.image if part == "overlays" else None
        save_part(path, part, self.labels, self.info.classes, legend=legend, image=image,
                  confidence=self.confidence, label_probability=self.agreement,
                  novelty=self.novelty)  # fmt: skip

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
        name = self.path.name if self.path is not None else self.origin.name
        return coco_record(self.labels, self.info.classes, self.classes, name, image_id, first_id)

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
            return small_overlay(self.image, self._hatched(), self.palette)
        except DataError:
            # the file has gone; the mask is still here
            return small_overlay(None, self._hatched(), self.palette)

    def _repr_png_(self) -> bytes:
        """The overlay for a notebook."""
        return encode(self._shown(), "PNG")

    def _repr_html_(self) -> str:
        """The overlay with a legend for a notebook."""
        largest_first = sorted(self.classes, key=lambda item: -item.pixels)
        rows: list[Row] = [(c.name, c.color, (c.fraction, c.confidence, c.agreement)) for c in largest_first]
        if self.novel_share is not None:
            rows.append(("novel (hatched)", IGNORED[0], (self.novel_share, None, None)))
        return legend_html(self._shown(), self.origin.name, rows)
