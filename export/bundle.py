"""The bundle folder on disk: appears whole or not at all, and is checked against its own hashes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.errors import ExportError
from export.runners.contract import check_hash
from protoseg.files import sha256_file
from protoseg.manifest import MANIFEST_NAME, ArtifactFile, Manifest, ParityReport, Sample, read_manifest

SAMPLE_DIR = "samples"
ACTIVE_KEY = "prototype_active"
PARTIAL_SUFFIX = ".partial"
PREVIOUS_SUFFIX = ".previous"
REJECTED_SUFFIX = ".rejected"
Array = NDArray[Any]


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A bundle folder beside ``target`` that takes its place when the block ends without an error.

    On any error it is removed and ``target`` stays as it was.

    Raises:
        ExportError: If ``target`` exists and is not a bundle.
    """
    if (
        target.exists()
        and not (target / MANIFEST_NAME).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise ExportError(f"{target} exists and is not a bundle; choose another folder with -o")
    with staged_any(target) as partial:
        yield partial


@contextmanager
def staged_any(target: Path) -> Iterator[Path]:
    """As ``staged``, for any folder."""
    partial = target.with_name(f"{target.name}{PARTIAL_SUFFIX}")
    previous = target.with_name(f"{target.name}{PREVIOUS_SUFFIX}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if not partial.exists():  # the block put it somewhere else
            return
        for file in partial.rglob("*"):
            if file.is_file():
                flush(file)
        install(partial, target, previous)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, target: Path, previous: Path) -> None:
    """Put a finished folder in the place of ``target``."""
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.replace(previous)
    partial.replace(target)
    shutil.rmtree(previous, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside ``path`` and move it there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        flush(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, whole or not at all."""
    write_bytes(bundle / MANIFEST_NAME, (manifest.model_dump_json(indent=2) + "\n").encode())


def with_reports(manifest: Manifest, reports: dict[str, ParityReport]) -> Manifest:
    """The manifest with new parity reports by file name."""
    files = [
        item.model_copy(update={"parity": reports[item.name]}) if item.name in reports else item
        for item in manifest.files
    ]
    return manifest.model_copy(update={"files": files})


def verify_bundle(bundle: str | Path) -> Manifest:
    """Read the manifest and compare every file with its hash.

    Raises:
        ManifestError: If the manifest is missing or damaged.
        RunnerError: If a file is missing or changed.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    for item in manifest.files:
        check_hash(folder / item.name, item.sha256)
    for sample in manifest.samples:
        for name, digest in sample.sha256.items():
            check_hash(folder / name, digest)
    return manifest


def weight_note(item: ArtifactFile) -> str:
    """What the width of an ``int8-cpu`` file's weights means for the CPUs it may run on; else empty."""
    if item.precision != "int8-cpu":
        return ""
    bits = item.notes.get("weight_bits")
    if bits == 7:
        return "7-bit weights: exact on x86 CPUs with and without VNNI"
    return (
        "8-bit weights: sums overflow on x86 CPUs without VNNI, its parity holds on CPUs like the one it was "
        "made on; export the checkpoint again"
    )


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


def resize_weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) matrix of bilinear resampling with half-pixel centres and clamped edges."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    centre = centre.clip(0, source - 1)
    low = np.floor(centre).astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (centre - low))
    np.add.at(weights, (np.arange(target), high), centre - low)
    return weights.astype(np.float32)


def upsample(low: Array, height: int, width: int, multiple: int) -> Array:
    """Scores at the decoder's stride -> full size, independently of torch and ONNX.

    Args:
        low: (B, C, Y, X) float32.
        height: Image height in pixels.
        width: Image width in pixels.
        multiple: Images were padded to a multiple of this.

    Returns:
        (B, C, height, width) float32.
    """
    rows = resize_weights(low.shape[2], -(-height // multiple) * multiple)[:height]
    columns = resize_weights(low.shape[3], -(-width // multiple) * multiple)[:width]
    return np.asarray(np.einsum("hy,bcyx,wx->bchw", rows, low, columns, optimize=True))


def softmax(logits: Array) -> Array:
    """Probabilities over axis 1."""
    value = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(value / value.sum(1, keepdims=True))


def sample_reference(bundle: Path, sample: Sample, head: str, multiple: int) -> dict[str, Array]:
    """What torch gave for a sample, rebuilt from its files: the outputs that parity compares.

    Raises:
        ExportError: If the sample has no scores.
    """
    if sample.logits is None:
        raise ExportError(f"sample {sample.image} keeps no scores; export the checkpoint again")
    with Image.open(bundle / sample.labels) as image:
        ids = np.asarray(image)
    with np.load(bundle / sample.logits, allow_pickle=False) as stored:
        low = {name: stored[name] for name in stored.files if name != ACTIVE_KEY}
    labels = ids[None].astype(np.uint8 if ids.dtype == np.uint8 else np.int32)
    result: dict[str, Array] = {"labels": labels, **low}
    for name, value in low.items():
        result[name.removesuffix("_stride")] = upsample(value, ids.shape[0], ids.shape[1], multiple)
    probs = {h: softmax(result[f"{h}_logits"]) for h in ("linear", "prototype") if f"{h}_logits" in result}
    chosen = sum(probs.values()) / len(probs) if head == "mean" else probs[head]
    result["confidence"] = np.asarray(chosen).max(1)
    if len(probs) == 2:
        result["agreement"] = np.take_along_axis(probs["linear"], ids[None, None].astype(np.int64), 1)[:, 0]
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


def adapt(batch: NDArray[np.uint8], layout: Literal["uint8_nchw", "uint8_nhwc", "float32_nchw"]) -> Array:
    """A (B, C, H, W) uint8 batch in the element type and axes of the graph."""
    if layout == "uint8_nhwc":
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
    return batch.astype(np.float32) if layout == "float32_nchw" else batch


def pick(outputs: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """The named outputs that exist."""
    return {name: outputs[name] for name in names if name in outputs}
