"""Segments images and writes masks, overlays, confidence and disagreement maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.training import EvalConfig
from protoseg.data.find import EXPLAIN_FOLDER, RESULT_FOLDERS, FoundImage
from protoseg.data.images import read_image, resize_image
from protoseg.data.pictures import reading
from protoseg.data.soft_labels import write_soft_labels
from protoseg.errors import DataError
from protoseg.explain.record import write_reasons
from protoseg.inference import Autocast, HeadName, image_batch, image_logits, inference
from protoseg.input_rule import InputRule
from protoseg.method.pseudo_labels import fuse
from protoseg.models.segmenter import Segmenter
from protoseg.predict.command import Told, written_in_order
from protoseg.predict.maps import maps_of, small_logits
from protoseg.predict.reasons import Explainer
from protoseg.predict.table import part_file
from protoseg.predict.write import novel_share, save_part

DEFAULT_HEAD: HeadName = "linear"
PARTS = RESULT_FOLDERS
SOFT = "soft"
"""Folder of probabilities, which are written only when asked for."""


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, at the image's own size."""

    labels: NDArray[np.uint8]
    """(H, W) class ids."""
    confidence: NDArray[np.float32] | None
    """(H, W) probability of the label in [0, 1]; None where not asked for."""
    label_probability: NDArray[np.float32] | None
    """(H, W) probability that the linear head gives to the label, in [0, 1]: low where it may be wrong; None
    where not asked for."""
    novelty: NDArray[np.float32] | None = None
    """(H, W) in [0, 1], novel from 0.5 on; None where nothing was fitted."""


def predict_image(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    rule: InputRule,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
    autocast: Autocast = nullcontext,
    scores: bool = True,
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
        autocast: Gives the context of a forward pass.
        scores: Tell both probabilities, too; labels alone are cheaper.

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
        small = small_logits(
            segmenter, batch, (height, width), head, config or EvalConfig(), rule.crop, autocast
        )
        label, confidence, believed = maps_of(small, head, scores=scores)
        novelty = small.logits.novelty
        novelty = None if novelty is None else small.enlarge(novelty)[0, 0]
    return Prediction(
        label.cpu().numpy().astype(np.uint8, copy=False),
        _array(confidence),
        _array(believed),
        _array(novelty),
    )


def _array(values: Tensor | None) -> NDArray[np.float32] | None:
    return None if values is None else values.cpu().numpy()


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
        logits = image_logits(
            segmenter, batch, config or EvalConfig(), rule.crop, prototypes=head != "linear"
        )
        if logits.prototype is None or head == "linear":
            probs = logits.linear.softmax(1)
        else:
            fused = head == "fused"
            probs = fuse(logits.linear, logits.prototype) if fused else logits.prototype.softmax(1)
    return probs[0].float().cpu().numpy()


def predict_files(
    segmenter: Segmenter,
    info: CheckpointInfo,
    images: Sequence[FoundImage],
    out: Path,
    *,
    head: HeadName = DEFAULT_HEAD,
    config: EvalConfig | None = None,
    parts: Sequence[str] = PARTS,
    legend: bool = True,
    explainer: Explainer | None = None,
    workers: int = 1,
) -> Iterator[tuple[Path, str | None]]:
    """Segment files, write the results, and note in ``out/predictions.csv`` what is whose.

    ``legend`` names the colours below each overlay; ``explainer`` says why, in ``out/explain``. ``workers``
    images are read, computed and written at a time, in threads; a GPU computes one of them at a time.

    Returns:
        Each path in order, with None, or why it was skipped.

    Raises:
        DataError: If a result cannot be written, or the table of an earlier call cannot be read.
    """
    scores = not {"confidence", "disagreement"}.isdisjoint(parts)
    rules = reading(info.data, info.input)
    on_cpu = segmenter.bank.prototypes.device.type == "cpu"
    turn: AbstractContextManager[object] = nullcontext() if on_cpu else Lock()

    def segment(item: FoundImage, name: str) -> Told:
        try:
            image = read_image(item.path, info.input.channels, rules)
        except DataError as error:
            return Told(skipped=str(error))
        with turn:
            prediction = predict_image(segmenter, image, info.input, head=head, config=config, scores=scores)
        for part in parts:
            if part == SOFT:
                with turn:
                    probs = soft_labels(segmenter, image, info.input, head=head, config=config)
                write_soft_labels(out / SOFT / f"{name}.npz", probs, [item.name for item in info.classes])
                continue
            save_part(out / part_file(part, name), part, prediction.labels, info.classes, legend=legend,
                      image=image, confidence=prediction.confidence,
                      label_probability=prediction.label_probability,
                      novelty=prediction.novelty)  # fmt: skip
        if explainer is not None:
            with turn:
                grounds = explainer.grounds(segmenter, image, info.input)
            about = {"image": item.name, "run": info.name, "step": info.step, "head": head}
            base = out / EXPLAIN_FOLDER / name
            write_reasons(base, image, prediction.labels, grounds, info.classes, about)
        return Told(novel_share=novel_share(prediction.novelty))

    return written_in_order(
        segment, images, out, parts, head=head, run=info.name, version=info.step, workers=workers
    )
