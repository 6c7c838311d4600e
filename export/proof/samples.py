"""The bundle's samples: images with what torch gave for them, the smoke test of any deployment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.runners.contract import Array
from protoseg.errors import ExportError
from protoseg.files import sha256_file
from protoseg.manifest import Head, Manifest, Sample

SAMPLE_DIR = "samples"
ACTIVE_KEY = "prototype_active"


def _write_pixels(path: Path, pixels: NDArray[np.uint8]) -> Path:
    if pixels.shape[2] in (1, 3, 4):
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
        return path
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


def write_sample(
    bundle: Path, number: int, pixels: NDArray[np.uint8], outputs: dict[str, Array], active: Array
) -> Sample:
    """Write one sample: the image, its labels as PNG, and the scores at the decoder's stride.

    Args:
        bundle: Bundle folder.
        number: Number in the file names.
        pixels: (H, W, C) image at the working size.
        outputs: Torch's outputs for it, as a batch of one.
        active: (C,) bool: classes with prototypes.
    """
    folder = bundle / SAMPLE_DIR
    folder.mkdir(exist_ok=True)
    image = _write_pixels(folder / f"{number}.png", pixels)
    labels = folder / f"{number}_labels.png"
    ids = outputs["labels"][0]
    Image.fromarray(ids if ids.dtype == np.uint8 else ids.astype(np.uint16)).save(labels)
    logits = folder / f"{number}_logits.npz"
    kept = {k: v for k, v in outputs.items() if k.endswith("_logits_stride")}
    np.savez(logits, allow_pickle=False, **{ACTIVE_KEY: active, **kept})
    names = [f"{SAMPLE_DIR}/{path.name}" for path in (image, labels, logits)]
    return Sample(
        image=names[0], labels=names[1], logits=names[2],
        sha256={name: sha256_file(bundle / name) for name in names},
    )  # fmt: skip


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """A sample's image as (H, W, C)."""
    if path.suffix == ".npy":
        array: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return array
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_labels(path: Path) -> Array:
    """A sample's labels as (H, W) class ids, in the type of the graph's output."""
    with Image.open(path) as image:
        ids = np.asarray(image)
    return ids if ids.dtype == np.uint8 else ids.astype(np.int32)


def active_classes(bundle: Path, manifest: Manifest) -> Array:
    """(C,) bool: classes with prototypes, as the samples note it."""
    for sample in manifest.samples:
        if sample.logits is not None:
            with np.load(bundle / sample.logits, allow_pickle=False) as stored:
                if ACTIVE_KEY in stored.files:
                    return np.asarray(stored[ACTIVE_KEY], bool)
    return np.ones(len(manifest.classes), bool)


def upsample(low: Array, height: int, width: int, multiple: int) -> Array:
    """Scores at the decoder's stride -> full size, bilinear, independently of torch and ONNX.

    Args:
        low: (B, C, Y, X) float32.
        height: Image height in pixels.
        width: Image width in pixels.
        multiple: Images were padded to a multiple of this.

    Returns:
        (B, C, height, width) float32.
    """
    padded = [-(-size // multiple) * multiple for size in (width, height)]
    import cv2  # where a bundle is made it need not be

    full = [[cv2.resize(plane, padded, interpolation=cv2.INTER_LINEAR) for plane in item] for item in low]
    return np.asarray(full)[..., :height, :width]


def softmax(logits: Array) -> Array:
    """Probabilities over axis 1."""
    value = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(value / value.sum(1, keepdims=True))


def head_scores(linear: Array, prototype: Array | None, head: Head) -> Array:
    """What a head ranks classes by: its logits, or the mean of both heads' probabilities for ``fused``."""
    if head == "linear" or prototype is None:
        return linear
    return prototype if head == "prototype" else (softmax(linear) + softmax(prototype)) / 2


def sample_reference(bundle: Path, sample: Sample, head: Head, multiple: int) -> dict[str, Array]:
    """What torch gave for a sample, rebuilt from its files: the outputs that parity compares.

    Raises:
        ExportError: If the sample has no scores.
    """
    if sample.logits is None:
        raise ExportError(f"sample {sample.image} keeps no scores; export the checkpoint again")
    labels = read_labels(bundle / sample.labels)[None]
    with np.load(bundle / sample.logits, allow_pickle=False) as stored:
        result: dict[str, Array] = {name: stored[name] for name in stored.files if name != ACTIVE_KEY}
    height, width = labels.shape[1:]
    for name in list(result):
        result[name.removesuffix("_stride")] = upsample(result[name], height, width, multiple)
    linear, prototype = result["linear_logits"], result.get("prototype_logits")
    chosen = head_scores(linear, prototype, head)
    result["labels"] = labels
    result["confidence"] = np.asarray((chosen if head == "fused" else softmax(chosen)).max(1))
    if prototype is not None:
        ids = labels[:, None].astype(np.int64)
        result["agreement"] = np.take_along_axis(softmax(linear), ids, 1)[:, 0]
    return result


def sample_batches(
    bundle: Path, manifest: Manifest
) -> list[tuple[Sample, NDArray[np.uint8], dict[str, Array]]]:
    """Every sample with its image (1, C, H, W) and torch's outputs."""
    found = []
    for sample in manifest.samples:
        pixels = read_pixels(bundle / sample.image)
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        reference = sample_reference(bundle, sample, manifest.graph.head, manifest.input.stride_multiple)
        found.append((sample, batch, reference))
    return found
