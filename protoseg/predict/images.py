"""Segments images and writes masks, overlays, confidence and disagreement maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.sections import EvalConfig
from protoseg.data.find import RESULT_FOLDERS
from protoseg.data.images import read_image, resize_image, save_image, save_mask, save_whole
from protoseg.data.pictures import reading
from protoseg.draw.colours import overlay_picture
from protoseg.errors import DataError
from protoseg.inference import HeadName, image_batch, image_logits, inference, score, upsample
from protoseg.manifest import InputRule
from protoseg.method.pseudo_labels import label_probability
from protoseg.models.segmenter import Segmenter

DEFAULT_HEAD: HeadName = "linear"
PARTS = RESULT_FOLDERS


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, at the image's own size."""

    labels: NDArray[np.uint8]
    """(H, W) class ids."""
    confidence: NDArray[np.float32]
    """(H, W) probability of the label in [0, 1]."""
    label_probability: NDArray[np.float32]
    """(H, W) probability that the linear head gives to the label, in [0, 1]: low where it may be wrong."""


def predict_image(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    rule: InputRule,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
) -> Prediction:
    """Segment one image on the device that the network is on.

    The image is resized by ``rule.resize``; the logits of the working size are upsampled bilinearly
    (half-pixel centres) to the image's own size, and the labels are their argmax (the lowest id among
    equals). Anything that serves the network is measured against this.

    Args:
        segmenter: Network and prototypes; its mode is restored.
        image: (H, W, C_in) uint8 in [0, 255], RGB for three channels.
        rule: How an image becomes the network's input.
        head: Head that labels.
        config: Whole image (the default) or windows.

    Raises:
        ValueError: If the image has other channels than the network, or the head needs prototypes and
            there are none.
    """
    if image.ndim != 3 or image.shape[2] != rule.channels or image.dtype != np.uint8:
        raise ValueError(
            f"image has shape {image.shape} and type {image.dtype}, expected (H, W, {rule.channels}) uint8"
        )
    height, width = image.shape[:2]
    batch = image_batch([resize_image(image, rule.resize)], segmenter.bank.prototypes.device)
    with inference(segmenter):
        low = image_logits(segmenter, batch, config or EvalConfig(), rule.crop)
        logits = upsample(low, height, width)
        label, confidence = score(logits, head)
        believed = label_probability(logits.linear, label)
    return Prediction(
        label[0].cpu().numpy().astype(np.uint8), confidence[0].cpu().numpy(), believed[0].cpu().numpy()
    )


def output_names(paths: Sequence[Path]) -> list[str]:
    """A distinct output stem for each path: its own stem, or ``STEM_2`` and so on for later ones.

    Case is ignored, because some file systems do. A later file never takes the stem of another input.
    """
    taken = {path.stem.casefold() for path in paths}
    given: set[str] = set()
    names = []
    for path in paths:
        name, number = path.stem, 1
        if name.casefold() in given:
            while (name := f"{path.stem}_{(number := number + 1)}").casefold() in taken | given:
                pass
        given.add(name.casefold())
        names.append(name)
    return names


def write_prediction(
    out: Path,
    name: str,
    image: NDArray[np.uint8],
    prediction: Prediction,
    colors: Sequence[tuple[int, int, int]],
    parts: Sequence[str],
) -> None:
    """Write the pictures of one image into the folders of ``parts``, which must exist.

    Raises:
        DataError: If a file cannot be written.
    """
    if "masks" in parts:
        save_mask(out / "masks" / f"{name}.png", prediction.labels, colors)
    if "overlays" in parts:
        picture = Image.fromarray(overlay_picture(image, prediction.labels, colors))
        save_whole(out / "overlays" / f"{name}.jpg", picture)
    if "confidence" in parts:
        save_image(out / "confidence" / f"{name}.png", to_grey(prediction.confidence))
    if "disagreement" in parts:
        save_image(out / "disagreement" / f"{name}.png", to_grey(1 - prediction.label_probability))


def to_grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255, rounded."""
    return np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)


def predict_files(
    segmenter: Segmenter,
    info: CheckpointInfo,
    paths: Sequence[Path],
    out: Path,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
    parts: Sequence[str] = PARTS,
) -> Iterator[tuple[Path, str | None]]:
    """Segment files one by one and write the results.

    Yields:
        Each path, with None, or why it was skipped.

    Raises:
        DataError: If a result cannot be written.
    """
    colors = [item.color for item in info.classes]
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            image = read_image(path, info.input.channels, reading(info.data, info.input))
        except DataError as error:
            yield path, str(error)
            continue
        prediction = predict_image(segmenter, image, info.input, head=head, config=config)
        write_prediction(out, name, image, prediction, colors, parts)
        yield path, None
