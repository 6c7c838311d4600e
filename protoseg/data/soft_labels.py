"""Labels of unlabelled images that another tool made, by image name (``pseudo_labels.folder``).

For an image ``sub/NAME.jpg`` below ``data.root`` the folder holds, at ``sub/NAME`` or at ``NAME``, one of

* ``soft/NAME.npz`` or ``NAME.npz``: ``probs`` (C, h, w), uint8 in [0, 255] or float in [0, 1], and
  ``classes``, the names in their order (``python -m protoseg.predict --soft`` writes these);
* ``NAME.npy``: the probabilities alone;
* ``masks/NAME.png`` or ``NAME.png``: class ids, other values unlabelled; ``confidence/NAME.png`` beside, 0 to
  255, where there is one (what ``python -m protoseg.predict`` writes).

Where files do not name classes, ``classes.txt`` in the folder does, one a line. Sizes may differ from the
image's; height to width may not.

Shape legend: ``C`` classes, ``h w`` size in the file, ``H W`` working size.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from protoseg.errors import DataError
from protoseg.files import write_whole

Scores = NDArray[np.float32]
PLACES = ("soft/{}.npz", "{}.npz", "{}.npy", "masks/{}.png", "{}.png")
CONFIDENCE = "confidence/{}.png"
CLASSES_NAME = "classes.txt"
LARGEST_CONFIDENCE = 65535
SHOWN = 3


def write_soft_labels(path: Path, probs_CHW: NDArray[Any], classes: Sequence[str]) -> None:
    """Write probabilities as uint8, whole or not at all; see the top of the file.

    Raises:
        DataError: If it cannot be written.
    """
    values = np.round(255 * np.clip(np.asarray(probs_CHW, np.float32), 0, 1)).astype(np.uint8)

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, probs=values, classes=np.array(list(classes)))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


class SoftLabels:
    """The files of a folder for images.

    Args:
        folder: The folder.
        images: Absolute paths.
        classes: Names of the run's classes, in their order.
        root: ``data.root``.
        any_ratio: Accept files of another height to width (``data.resize.mode=fixed`` changes the images').

    Raises:
        DataError: If the folder, or files of some images, are missing, or its classes are others.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[Path],
        classes: Sequence[str],
        root: Path,
        *,
        any_ratio: bool = False,
    ) -> None:
        if not folder.is_dir():
            raise DataError(
                f"pseudo_labels.folder {folder} is no folder; it holds NAME.npz, NAME.npy or NAME.png for "
                "each unlabelled image"
            )
        self.folder, self.classes, self.any_ratio = folder, list(classes), any_ratio
        found = [self._find(image, root) for image in images]
        missing = [image for image, file in zip(images, found, strict=True) if file is None]
        if missing:
            names = ", ".join(image.name for image in missing[:SHOWN])
            tried = ", ".join(place.format(missing[0].stem) for place in PLACES)
            raise DataError(
                f"pseudo_labels.folder {folder} has no labels for {len(missing)} of {len(found)} images "
                f"({names}{', ...' if missing[SHOWN:] else ''}); looked for {tried}"
            )
        self.files = [file for file in found if file is not None]
        if len(set(self.files)) < len(self.files):
            twice = next(file for file in self.files if self.files.count(file) > 1)
            raise DataError(
                f"{twice} would label several images of one name; put labels at the images' paths below "
                f"{root}"
            )
        listed = folder / CLASSES_NAME
        if listed.is_file():
            lines = listed.read_text(encoding="utf-8-sig").splitlines()
            self._compare([line.strip() for line in lines if line.strip()], listed)
        self._probs(0)  # what is wrong with one is most often wrong with all, and is said before the training

    def _find(self, image: Path, root: Path) -> Path | None:
        names = [image.stem]
        if image.is_relative_to(root):
            names.insert(0, image.relative_to(root).with_suffix("").as_posix())
        tried = (self.folder / place.format(name) for name in names for place in PLACES)
        return next((file for file in tried if file.is_file() and file != image), None)

    def _compare(self, theirs: list[str], file: Path) -> None:
        if theirs == self.classes:
            return
        if sorted(theirs) == sorted(self.classes):
            place = next(i for i, name in enumerate(theirs) if name != self.classes[i])
            raise DataError(
                f"{file} has the run's classes in another order: class {place} is {theirs[place]!r} there "
                f"and {self.classes[place]!r} here"
            )
        raise DataError(
            f"{file} has the classes {', '.join(theirs)}; this run has {', '.join(self.classes)}. They must "
            "be the same, in the same order"
        )

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Hash of names and sizes of the files (not of their bytes, which may be gigabytes)."""
        lines = [f"{file.relative_to(self.folder)} {file.stat().st_size}" for file in sorted(self.files)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def scores(self, index: int, size: tuple[int, int]) -> torch.Tensor:
        """(C, H, W) logarithms of probabilities at a working size; even over the classes where unlabelled.

        Raises:
            DataError: If the file cannot be read, or does not fit image or classes.
        """
        file, probs = self.files[index], self._probs(index)
        height, width = size
        tall, wide = probs.shape[1:]
        # both sides rounded to whole pixels
        off = abs(tall * width - wide * height)
        if not self.any_ratio and off > (tall + wide + height + width) / 2:
            raise DataError(
                f"{file} is {tall}x{wide} (height x width), its image {height}x{width} at the working size; "
                "height to width must be the same"
            )
        values = torch.from_numpy(probs)[None]
        if (tall, wide) != size:
            nearest = file.suffix == ".png"
            values = F.interpolate(values, size=size, mode="nearest-exact" if nearest else "bilinear",
                                   align_corners=None if nearest else False)  # fmt: skip
        return values[0].clamp(min=1e-6).log()

    def packed(self, index: int, size: tuple[int, int], temperature: torch.Tensor) -> NDArray[np.uint8]:
        """(3, H, W) bytes: class id, and the upper and lower byte of the confidence in 1/65535.

        Args:
            index: Number of the image.
            size: Working size.
            temperature: (C,) by the class that is named, see ``Calibration``.
        """
        scores = self.scores(index, size)
        label = scores.argmax(0)
        confidence = (scores / temperature[label]).softmax(0).amax(0)
        # where all classes are equally likely nobody has said anything
        said = scores.amax(0) > scores.amin(0)
        number = (confidence * said * LARGEST_CONFIDENCE).round().long()
        return torch.stack([label, number >> 8, number & 255]).to(torch.uint8).numpy()

    def _probs(self, index: int) -> Scores:
        file = self.files[index]
        try:
            return self._hard(file) if file.suffix == ".png" else self._soft(file)
        except DataError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} cannot be read: {error}") from error

    def _soft(self, file: Path) -> Scores:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                if "classes" in found.files:
                    self._compare([str(name) for name in found["classes"]], file)
                probs = found["probs"]
        else:
            probs = found
        if probs.ndim != 3 or len(probs) != len(self.classes):
            raise DataError(
                f"{file} holds an array of shape {probs.shape}; expected ({len(self.classes)}, height, "
                "width), a probability for each class"
            )
        if probs.dtype == np.uint8:
            values = probs.astype(np.float32) / 255
        elif (
            probs.dtype.kind == "f" and np.isfinite(probs).all() and probs.min() >= 0 and probs.max() <= 1.01
        ):
            values = probs.astype(np.float32)
        else:
            raise DataError(
                f"{file} holds {probs.dtype} values; expected probabilities: uint8 in [0, 255] or float in "
                "[0, 1]"
            )
        total = values.sum(0, keepdims=True)
        return np.asarray(np.where(total > 0, values / np.maximum(total, 1e-6), 1 / len(values)), np.float32)

    def _hard(self, file: Path) -> Scores:
        with Image.open(file) as opened:
            if opened.mode not in ("L", "P"):
                raise DataError(
                    f"{file} has mode {opened.mode}; expected class ids as grey or palette values"
                )
            ids = np.asarray(opened)
        name = file.relative_to(self.folder).with_suffix("").as_posix().removeprefix("masks/")
        beside = self.folder / CONFIDENCE.format(name)
        sure: Scores = np.ones(ids.shape, np.float32)
        if beside.is_file():
            with Image.open(beside) as opened:
                sure = (np.asarray(opened.convert("L")) / 255).astype(np.float32)
            if sure.shape != ids.shape:
                raise DataError(f"{beside} is {sure.shape}, its mask {ids.shape} (height, width)")
        count = len(self.classes)
        known = ids < count
        # the rest of the probability lies evenly on the other classes
        sure = np.where(known, np.maximum(sure, 1 / count), 1 / count).astype(np.float32)
        probs = np.broadcast_to((1 - sure) / max(count - 1, 1), (count, *ids.shape)).copy()
        np.put_along_axis(probs, np.where(known, ids, 0)[None].astype(np.int64), sure[None], axis=0)
        return probs.astype(np.float32)
