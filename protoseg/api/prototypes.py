"""What prototypes are for, as functions: ``protoseg.adapt``, ``protoseg.explain``, ``protoseg.novelty``.

Each does what its command does with the same code. Torch is imported when one is called.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image

from protoseg.api.inputs import FileReader, ImageInput, file_suffix, origin_of, read_pixels, tensor_array
from protoseg.api.program import PathLike, messages, setting_texts
from protoseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from protoseg.api.segmenter import Segmenter
    from protoseg.checkpoint import CheckpointInfo
    from protoseg.explain.make import Made
    from protoseg.novelty.make import FittedNovelty

logger = logging.getLogger("protoseg")


def adapt(
    checkpoint: PathLike,
    output: PathLike,
    *,
    add: str | None = None,
    mend: str | None = None,
    remove: str | None = None,
    merge: tuple[str, str] | None = None,
    rename: tuple[str, str] | None = None,
    images: PathLike | Sequence[ImageInput] | None = None,
    masks: PathLike | Sequence[ImageInput] | None = None,
    value: int | str | None = None,
    color: tuple[int, int, int] | str | None = None,
    others: PathLike | Sequence[ImageInput] | None = None,
    other_images: int | None = None,
    val: PathLike | None = None,
    device: str | None = None,
) -> Segmenter:
    """Change the classes of a network without training, as ``protoseg adapt`` does, and load it.

    One of ``add``, ``mend``, ``remove``, ``merge`` and ``rename`` says what is done. What is found on the way
    (how masks are read, IoU before and after) are messages of the logger ``protoseg``.

    Args:
        checkpoint: Run folder, checkpoint folder, a file in it, or what ``train`` gave; with prototypes.
        output: Run folder for the changed network; it must hold no checkpoint.
        add: A class that the network does not know.
        mend: A class that it should know better, from corrected masks.
        remove: A class whose pixels go to the next likely one.
        merge: Two classes; the second becomes a part of the first.
        rename: A class, and its new name.
        images: Images that show the class: a folder, a list file of ``image mask`` lines, or several images
            as a model takes them (paths, bytes, PIL images, arrays, tensors).
        masks: Their masks: a folder, or as many as there are images: paths, PIL images, or arrays and tensors
            ``(H, W)`` of whole numbers, or of bools that are true where the class is.
        value: What the class is in the masks, a value or a colour (``"128,0,0"``); None finds it out where
            the masks leave no doubt.
        color: Colour of a new class, RGB in [0, 255]; None takes one unlike the others'.
        others: Images that do not show the class: a folder or several images; None takes labelled images of
            the training.
        other_images: Such images to look at, at most; 0: none; None: the command's default.
        val: List of ``image mask`` lines to measure on, before and after.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes what accelerate finds.

    Returns:
        The changed network.

    Raises:
        UserError: If the change does not fit the classes, or images or masks cannot be used.
    """
    from protoseg.adapt.adapt import OTHER_IMAGES
    from protoseg.adapt.run import change_checkpoint, change_of
    from protoseg.api.segmenter import Segmenter
    from protoseg.checkpoint import read_info, resolve_checkpoint

    options: dict[str, Any] = {
        "add": add, "mend": mend, "remove": remove, "merge": merge, "rename": rename, "color": color,
        "other_images": OTHER_IMAGES if other_images is None else other_images,
    }  # fmt: skip
    out = Path(output).expanduser()
    with tempfile.TemporaryDirectory(prefix="protoseg-") as folder:
        given = _Given(Path(folder), read_info(resolve_checkpoint(Path(checkpoint))))
        options |= given.pairs(images, masks, None if value is None else str(value))
        options["others"] = given.images(others, "other") if _several(others) else _path(others)
        wanted = change_of(options)
        with messages("protoseg"):
            change_checkpoint(checkpoint, wanted, out, val=_path(val), device=device, say=logger.info)
    return Segmenter(out, device=device)


def _path(given: Any) -> Path | None:
    return None if given is None else Path(given).expanduser()


def _several(given: object) -> TypeGuard[Sequence[ImageInput]]:
    """Whether several images are given, and not a folder or a list of them.

    Raises:
        DataError: If it is neither.
    """
    if given is None or isinstance(given, str | os.PathLike):
        return False
    if not isinstance(given, list | tuple):
        raise DataError(
            f"got a {type(given).__name__}; give a folder, a list file, or a Python list of images or masks"
        )
    return True


class _Given:
    """Images and masks of a caller as files, which is what changes are made from.

    Args:
        folder: Where what is no file is written.
        info: The network's description.
    """

    def __init__(self, folder: Path, info: CheckpointInfo) -> None:
        from protoseg.data.pictures import reading

        self._folder, self._how = folder, reading(info.data, info.input)
        self._reader = FileReader(info.input.channels, self._how)

    def pairs(self, images: Any, masks: Any, value: str | None) -> dict[str, Any]:
        """``images``, ``masks`` and ``value`` as a change takes them.

        Raises:
            DataError: If they are not as many, or one cannot be used.
        """
        several = _several(images), _several(masks)
        if several == (False, False):
            return {"images": _path(images), "masks": _path(masks), "value": value}
        if several != (True, True) or len(images) != len(masks):
            given = zip((images, masks), several, strict=True)
            counts = " and ".join(str(len(item)) if one else "no list" for item, one in given)
            raise DataError(
                f"images and masks must be lists of one length, got {counts}; a folder goes with a folder"
            )
        from protoseg.data.lines import Entry

        files = self.images(images, "image")
        stored = [self._mask(mask, number) for number, mask in enumerate(masks)]
        if value is None and any(binary for _, binary in stored):
            value = "255"
        entries = [Entry(image, mask) for image, (mask, _) in zip(files, stored, strict=True)]
        return {"images": entries, "masks": None, "value": value}

    def images(self, given: Sequence[ImageInput], name: str) -> list[Path]:
        """Images as files: paths as they are, all else below the folder.

        Raises:
            DataError: If one cannot be used.
        """
        return [self._image(image, f"{name}_{number}") for number, image in enumerate(given)]

    def _image(self, image: ImageInput, name: str) -> Path:
        if (file := self._file(image, name)) is not None:
            return file
        if self._how.bands is not None:
            raise DataError(f"this network takes bands {list(self._how.bands)} of a file; give files")
        path = self._folder / f"{name}.npy"
        np.save(path, read_pixels(image, self._reader.channels, self._reader, self._how))
        return path

    def _mask(self, mask: ImageInput, number: int) -> tuple[Path, bool]:
        """A mask as a file, and whether it was one of bools: 255 where the class is."""
        name = f"mask_{number}"
        if (file := self._file(mask, name)) is not None:
            return file, False
        if isinstance(mask, Image.Image) and mask.mode != "1":
            path = self._folder / f"{name}.png"
            mask.save(path)
            return path, False
        array = np.asarray(mask) if isinstance(mask, Image.Image | np.ndarray) else tensor_array(mask)
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        binary = array.dtype == np.bool_
        if not (binary or np.issubdtype(array.dtype, np.integer)):
            raise DataError(f"{name} holds {array.dtype}; give whole numbers, or bools: mask > 0.5")
        if array.ndim == 3 and array.shape[2] in (3, 4) and not binary:
            path = self._folder / f"{name}.png"
            Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))).save(path)
            return path, False
        path = self._folder / f"{name}.npy"
        np.save(path, array.astype(np.uint8) * 255 if binary else array)
        return path, binary

    def _file(self, given: ImageInput, name: str) -> Path | None:
        """The file that it is or whose bytes it is; None for pixels."""
        if isinstance(given, bytes | bytearray | memoryview):
            path = self._folder / f"{name}{file_suffix(bytes(given))}"
            path.write_bytes(given)
            return path
        if isinstance(given, Image.Image):
            return None
        return origin_of(given).path


def explain(
    checkpoint: PathLike,
    output: PathLike | None = None,
    *,
    images: int | None = None,
    patch: int | None = None,
    device: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> Made:
    """Find the training patches that each prototype is nearest to, as ``protoseg explain`` does.

    Args:
        checkpoint: Run folder, checkpoint folder, a file in it, or what ``train`` gave; with prototypes.
        output: Folder for the atlas; None: ``prototypes`` in the run folder, where models look for it.
        images: Labelled images to look at; None: the command's default.
        patch: Side of a patch in pixels of the working size; None: a third of the training crop.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, as ``{"root": "/data/camvid"}``.

    Returns:
        The atlas, its folder, and what was passed over; in a notebook, its picture.

    Raises:
        UserError: If there are no prototypes, or the images are not there.
    """
    from protoseg.explain.make import NUM_IMAGES, explain_checkpoint

    for name, number in (("images", images), ("patch", patch)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be at least 1, got {number}")
    made = explain_checkpoint(
        checkpoint, _path(output), num_images=images or NUM_IMAGES, patch=patch, device=device,
        data=setting_texts(data),
    )  # fmt: skip
    with messages("protoseg"):
        for text in made.notes:
            logger.warning("%s", text)
    return made


def novelty(
    checkpoint: PathLike,
    *,
    false_alarms: float | None = None,
    labeled: PathLike | None = None,
    val: PathLike | None = None,
    device: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> FittedNovelty:
    """Fit what tells pixels unlike everything labelled, as ``protoseg novelty`` does.

    Args:
        checkpoint: Run folder, checkpoint folder, a file in it, or what ``train`` gave.
        false_alarms: Share of validation pixels that may be called novel, in (0, 1); None: the command's
            default.
        labeled: List of labelled images that are known; None: those of the training.
        val: List of other labelled images, for the threshold; None: the validation images.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, as ``{"root": "/data/camvid"}``.

    Returns:
        Where it was written, what it was fitted to, and the false alarms by class.

    Raises:
        UserError: If the encoder is no convolutional one, or the images are not there.
    """
    from protoseg.novelty.make import FALSE_ALARMS, fit_checkpoint

    share = FALSE_ALARMS if false_alarms is None else false_alarms
    if not 0 < share < 1:
        raise ConfigError(f"false_alarms must be between 0 and 1, got {share:g}")
    fitted = fit_checkpoint(
        checkpoint, labeled=_path(labeled), val=_path(val), false_alarms=share, device=device,
        data=setting_texts(data),
    )  # fmt: skip
    with messages("protoseg"):
        for text in fitted.notes:
            logger.warning("%s", text)
    return fitted
