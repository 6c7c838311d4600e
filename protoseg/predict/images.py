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
from protoseg.data.find import RESULT_FOLDERS, FoundImage
from protoseg.data.images import read_image, resize_image, save_image, save_mask, save_whole
from protoseg.data.pictures import reading
from protoseg.data.soft_labels import write_soft_labels
from protoseg.draw.colours import overlay_picture
from protoseg.errors import DataError
from protoseg.inference import HeadName, image_batch, image_logits, inference, score, upsample
from protoseg.manifest import InputRule
from protoseg.method.pseudo_labels import fuse, label_probability
from protoseg.models.segmenter import Segmenter
from protoseg.predict.table import ResultTable, part_file

DEFAULT_HEAD: HeadName = "linear"
PARTS = RESULT_FOLDERS
SOFT = "soft"
"""Folder of probabilities, which are written only when asked for."""


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


def soft_labels(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    rule: InputRule,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
) -> NDArray[np.float32]:
    """(C, h, w) probabilities of one image at its working size; arguments as ``predict_image``."""
    batch = image_batch([resize_image(image, rule.resize)], segmenter.bank.prototypes.device)
    with inference(segmenter):
        logits = image_logits(segmenter, batch, config or EvalConfig(), rule.crop)
        if logits.prototype is None or head == "linear":
            probs = logits.linear.softmax(1)
        else:
            fused = head == "fused"
            probs = fuse(logits.linear, logits.prototype) if fused else logits.prototype.softmax(1)
    return probs[0].float().cpu().numpy()


def write_prediction(
    out: Path,
    name: str,
    image: NDArray[np.uint8],
    prediction: Prediction,
    colors: Sequence[tuple[int, int, int]],
    parts: Sequence[str],
) -> None:
    """Write the pictures of one image into the folders of ``parts``.

    Args:
        out: Folder of results.
        name: Path below each part's folder, without a suffix.
        image: (H, W, C) uint8.
        prediction: What the network says about it.
        colors: Colour of each class.
        parts: Folders to write into; they are made.

    Raises:
        DataError: If a file cannot be written.
    """
    grey = {"confidence": prediction.confidence, "disagreement": 1 - prediction.label_probability}
    for part in parts:
        path = out / part_file(part, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path.parent} cannot be made: {error}") from error
        if part == "masks":
            save_mask(path, prediction.labels, colors)
        elif part == "overlays":
            save_whole(path, Image.fromarray(overlay_picture(image, prediction.labels, colors)))
        else:
            save_image(path, to_grey(grey[part]))


def to_grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255, rounded."""
    return np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)


def predict_files(
    segmenter: Segmenter,
    info: CheckpointInfo,
    images: Sequence[FoundImage],
    out: Path,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
    parts: Sequence[str] = PARTS,
) -> Iterator[tuple[Path, str | None]]:
    """Segment files one by one, write the results, and note in ``out/predictions.csv`` what is whose.

    Yields:
        Each path, with None, or why it was skipped.

    Raises:
        DataError: If a result cannot be written, or the table of an earlier call cannot be read.
    """
    colors = [item.color for item in info.classes]
    table = ResultTable(out)
    names, rules = table.reserve(images), reading(info.data, info.input)
    try:
        for item, name in zip(images, names, strict=True):
            try:
                image = read_image(item.path, info.input.channels, rules)
            except DataError as error:
                yield item.path, str(error)
                continue
            prediction = predict_image(segmenter, image, info.input, head=head, config=config)
            write_prediction(out, name, image, prediction, colors, [part for part in parts if part != SOFT])
            if SOFT in parts:
                probs = soft_labels(segmenter, image, info.input, head=head, config=config)
                classes = [item.name for item in info.classes]
                write_soft_labels(out / SOFT / f"{name}.npz", probs, classes)
            table.done(item.path, parts, head, info)
            yield item.path, None
    finally:
        table.write()
