"""Masks for images: ``python -m protoseg.predict CKPT FILES|FOLDERS... -o OUT``.

For each image, upright as its EXIF says and at its own size:

* ``OUT/masks/STEM.png``: class ids, with the classes' colours as palette;
* ``OUT/overlays/STEM.jpg``: the mask over the image;
* ``OUT/confidence/STEM.png``: probability of the predicted class, 0 to 255;
* ``OUT/disagreement/STEM.png``: how little the linear head believes the mask, whichever head made it, 0 to
  255: bright where the mask may be wrong.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from protoseg.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint
from protoseg.config import EvalConfig
from protoseg.data.errors import DataError
from protoseg.data.images import read_image, resize_image, save_image, save_mask, save_whole
from protoseg.data.lines import IMAGE_SUFFIXES
from protoseg.inference import (
    HEADS,
    HeadName,
    image_batch,
    image_logits,
    inference,
    score,
    upsample,
    usable_device,
)
from protoseg.manifest import InputRule
from protoseg.models.segmenter import Segmenter
from protoseg.pictures import as_rgb, palette_picture
from protoseg.pseudo_labels import label_agreement

DEFAULT_HEAD: HeadName = "linear"
PARTS = ("masks", "overlays", "confidence", "disagreement")
OVERLAY_OPACITY = 0.5


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, at the image's own size."""

    labels: NDArray[np.uint8]
    """(H, W) class ids."""
    confidence: NDArray[np.float32]
    """(H, W) probability of the label in [0, 1]."""
    agreement: NDArray[np.float32]
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
        agreement = label_agreement(logits.linear, label)
    return Prediction(
        label[0].cpu().numpy().astype(np.uint8), confidence[0].cpu().numpy(), agreement[0].cpu().numpy()
    )


def overlay_picture(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Label colours half over the image, their outlines in full: (H, W, C_in), (H, W) -> (H, W, 3).

    A black class (the background, in most palettes) leaves the image as it is.
    """
    rgb, mask = as_rgb(image).astype(np.float32), palette_picture(labels, colors).astype(np.float32)
    opacity = np.where(_outline(labels), 1.0, OVERLAY_OPACITY)[..., None] * mask.any(2, keepdims=True)
    return np.round((1 - opacity) * rgb + opacity * mask).astype(np.uint8)


def _outline(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels with another label to the left, right, above or below."""
    edge = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def find_images(inputs: Sequence[Path], out: Path) -> list[Path]:
    """Images named, and those below folders in sorted order; results of an earlier call are left out.

    Raises:
        DataError: If an input does not exist or there is no image at all.
    """
    found: list[Path] = []
    results = [(out / part).resolve() for part in PARTS]
    for path in inputs:
        if path.is_dir():
            root = path.resolve()
            own = [folder for folder in results if folder != root and folder.is_relative_to(root)]
            found += [file for file in sorted(path.rglob("*")) if _is_input(file, path, own)]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} is neither a file nor a folder; give images or folders of images")
    if not found:
        names = ", ".join(map(str, inputs))
        raise DataError(f"no image in {names}; looked for {', '.join(IMAGE_SUFFIXES)}")
    return list({path.resolve(): path for path in found}.values())


def _is_input(file: Path, root: Path, results: Sequence[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        return False
    return not any(file.resolve().is_relative_to(folder) for folder in results)


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
        save_image(out / "disagreement" / f"{name}.png", to_grey(1 - prediction.agreement))


def to_grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255, rounded."""
    return np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.predict",
        description="Segment images: class-id masks, overlays, confidence and disagreement maps, each at the "
        "image's own size.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add(
        "inputs", metavar="PATH", nargs="+", type=Path, help="images, or folders that are searched for images"
    )
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add(
        "--head",
        choices=("auto", *HEADS),
        default="auto",
        help="head that labels (default: the one with the highest validation mIoU of the checkpoint)",
    )
    for part in PARTS[1:]:
        add(f"--no-{part.removesuffix('s')}", action="store_true", help=f"do not write OUT/{part}")
    add("--sliding", action="store_true", help="overlapping windows of the training crop, averaged, "
        "instead of the whole image at once")  # fmt: skip
    add("--student", action="store_true", help="use the student's weights instead of the teacher's")
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    return parser.parse_intermixed_args(argv)


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
            image = read_image(path, info.input.channels)
        except DataError as error:
            yield path, str(error)
            continue
        prediction = predict_image(segmenter, image, info.input, head=head, config=config)
        write_prediction(out, name, image, prediction, colors, parts)
        yield path, None


def run(arguments: argparse.Namespace) -> int:
    """Predict; returns the number of files that could not be read.

    Raises:
        CheckpointError, DataError, ValueError: With a text for the user.
    """
    checkpoint = load_checkpoint(arguments.checkpoint, student=arguments.student)
    info, segmenter = checkpoint.info, checkpoint.segmenter
    head: HeadName = info.best_head() if arguments.head == "auto" else arguments.head
    if head != "linear" and not bool(segmenter.bank.active.any()):
        raise ValueError(f"--head {head} needs prototypes, this checkpoint has none; use --head linear")
    out: Path = arguments.output
    paths = find_images(arguments.inputs, out)
    parts = [part for part in PARTS if not getattr(arguments, f"no_{part.removesuffix('s')}", False)]
    device = usable_device(arguments.device) if arguments.device else PartialState().device
    segmenter.to(device)
    for part in parts:
        (out / part).mkdir(parents=True, exist_ok=True)
    config = info.eval.model_copy(update={"mode": "sliding" if arguments.sliding else "whole"})
    failed = 0
    pause = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=len(paths), desc="predict", unit="image", mininterval=pause) as bar:
        for _path, reason in predict_files(
            segmenter, info, paths, out, head=head, config=config, parts=parts
        ):
            bar.update()
            if reason is not None:
                failed += 1
                bar.write(f"skipped: {reason}", file=sys.stderr)
    done = f"{len(paths) - failed} of {len(paths)} images"
    sys.stdout.write(f"{done} in {out} ({', '.join(parts)}), {head} head\n")
    return failed


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        failed = run(arguments)
    except torch.OutOfMemoryError:
        sys.stderr.write("error: the device's memory is full; use --sliding, or --device cpu\n")
        return 1
    except (CheckpointError, DataError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if failed:
        sys.stderr.write(f"error: {failed} file(s) could not be read, see above; the others are done\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
