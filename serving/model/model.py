"""Runs a bundle: sessions, input layout, static shapes, upsampling, tiles, warm-up and self test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import BundleError
from serving.model.batching import MicroBatcher, Result
from serving.model.bundle import Bundle, check_bundle
from serving.model.open import Runner, open_runner
from serving.model.tiles import Span, blend, plan
from serving.model.upsample import argmax_planes, softmax, upsample
from serving.pixels.decode import Pixels, resize
from serving.pixels.records import Labels, Scores, make_palette
from serving.settings import Settings

# requests are the unit of parallelism; OpenCV's own threads would fight over the cores
cv2.setNumThreads(1)

# labels of a sample may differ at ties between runtimes and precisions, and nowhere else
MIN_SAMPLE_AGREEMENT = {"fp32": 0.999, "fp16": 0.99, "int8": 0.95, "int8-cpu": 0.95}
_MIN_TILE = 512
logger = logging.getLogger(__name__)


@dataclass
class Prediction:
    """What the network says about one image."""

    labels: Labels
    """``(H, W)`` class ids."""
    confidence: Scores | None
    """``(H, W)`` largest probability in [0, 1], when asked for."""
    agreement: Scores | None
    """``(H, W)`` agreement of the two heads in [0, 1], when asked for and in the graph."""
    tiles: int
    """Tiles computed; 1 when the image went through at once."""


class Engine:
    """One loaded bundle. Thread-safe; usable as a context manager.

    Args:
        bundle: A checked bundle.
        settings: Settings of the service.

    Raises:
        BundleError: If it does not load, does not fit its manifest, or does not reproduce its
            samples on this machine.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.palette = make_palette(self.manifest)
        self._settings = settings
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()
        self._runner: Runner = open_runner(bundle, settings)
        self.runtime = self._runner.description
        names = frozenset(self._runner.outputs)
        self.has_confidence = bool(names & {"confidence", "logits", "logits_stride"})
        self.has_agreement = "agreement" in names
        self.upsampling = "logits" if names & {"logits", "logits_stride"} else "nearest"
        self._fused = False
        static = self.manifest.graph.static_shape
        self._static = static[1:] if static else None
        limit = settings.batch_max or (8 if self._runner.on_gpu else 1)
        self.batch_max = min(limit, static[0]) if static else limit
        self.batcher: MicroBatcher | None = None
        if self.batch_max > 1:
            self.batcher = MicroBatcher(
                self._run,
                max_batch=self.batch_max,
                delay_s=settings.batch_delay_ms / 1000,
                max_queue=settings.queue + settings.pool_threads + 2 * self.batch_max,
            )
        try:
            self.sample_agreement = self._self_test()
        except BaseException:
            self.close()
            raise

    @property
    def pool_threads(self) -> int:
        """Requests worth computing at a time."""
        threads = self._settings.pool_threads
        return max(threads, 2 * self.batch_max) if self.batcher is not None else threads

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        if self._static is not None:
            return self._static
        if self._settings.tile is not None:
            return self._settings.tile, self._settings.tile
        height, width = self.manifest.input.crop
        return max(height, _MIN_TILE), max(width, _MIN_TILE)

    def predict(
        self,
        image: Pixels,
        *,
        confidence: bool = False,
        agreement: bool = False,
        tile: bool = False,
        at_model_size: bool = False,
        deadline: float = float("inf"),
        alive: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """Segment one image.

        Args:
            image: ``(H, W, C)`` uint8, upright.
            confidence: Give the largest probability too, where the graph can.
            agreement: Give the agreement of the heads too, where the graph can.
            tile: Leave the image at its own size and compute it in overlapping tiles.
            at_model_size: Give maps at the working size instead of the image's own.
            deadline: ``time.monotonic()`` that waiting in a batch respects.
            alive: Called between tiles; raises when nobody waits any more.
        """
        confidence = confidence and self.has_confidence
        agreement = agreement and self.has_agreement
        working = image if tile else resize(image, self.manifest.input.resize)
        size = working.shape[:2] if at_model_size else image.shape[:2]
        height, width = working.shape[:2]
        window = self.tile_size
        too_large = height * width > self._settings.max_network_pixels
        if self._static is not None:
            too_large = height > window[0] or width > window[1]
        if too_large or (tile and (height > window[0] or width > window[1])):
            result = self._predict_tiles(working, confidence, agreement, deadline, alive)
        else:
            result = self._predict_whole(working, size, confidence, agreement, deadline)
        return _fit(result, size)

    def _predict_whole(
        self,
        working: Pixels,
        size: tuple[int, int],
        confidence: bool,
        agreement: bool,
        deadline: float,
    ) -> Prediction:
        same = size == working.shape[:2]
        if (same and not self._fused) or self.upsampling == "nearest":
            names = {"labels"}
            names |= {"confidence"} if confidence and "confidence" in self._runner.outputs else set()
            names |= {"agreement"} if agreement else set()
            if confidence and "confidence" not in names:
                names |= {"logits", "logits_stride"} & set(self._runner.outputs)
            out = self._forward(working, frozenset(names), deadline)
            if confidence and "confidence" not in out:
                _, scores = self._from_logits(out, working.shape[:2], size, True)
                return Prediction(out["labels"], scores, out.get("agreement"), 1)
            return Prediction(out["labels"], out.get("confidence"), out.get("agreement"), 1)
        # stride logits are smaller to copy; full ones are only used where they are the only ones
        source = "logits_stride" if "logits_stride" in self._runner.outputs else "logits"
        out = self._forward(working, frozenset({source} | ({"agreement"} if agreement else set())), deadline)
        labels, scores = self._from_logits(out, working.shape[:2], size, confidence)
        return Prediction(labels, scores, out.get("agreement"), 1)

    def _from_logits(
        self, out: Result, working: tuple[int, ...], size: tuple[int, int], confidence: bool
    ) -> tuple[Labels, Scores | None]:
        crop = (working[0], working[1])
        if "logits_stride" in out:
            logits = out["logits_stride"]
            multiple = self.manifest.input.stride_multiple
            through = (-crop[0] % multiple + crop[0], -crop[1] % multiple + crop[1])
            return argmax_planes(lambda: upsample(logits, size, through, crop), confidence)
        logits = out["logits"]
        return argmax_planes(lambda: upsample(logits, size, None, crop), confidence)

    def _predict_tiles(
        self,
        image: Pixels,
        confidence: bool,
        agreement: bool,
        deadline: float,
        alive: Callable[[], None],
    ) -> Prediction:
        height, width = image.shape[:2]
        rows, columns = plan(height, self.tile_size[0]), plan(width, self.tile_size[1])
        available = set(self._runner.outputs)
        names = {"logits"} if "logits" in available else {"labels", "confidence"} & available
        names |= {"agreement"} if agreement else set()
        classes = len(self.manifest.classes)
        labels = np.empty((height, width), np.uint8)
        scores = np.empty((height, width), np.float32) if confidence else None
        agreed = np.empty((height, width), np.float32) if agreement else None

        def tile_scores(row: Span, column: Span) -> Scores:
            alive()
            window = np.ascontiguousarray(image[row.start : row.stop, column.start : column.stop])
            out = self._forward(window, frozenset(names), deadline)
            if "logits" in out:
                probs = softmax(out["logits"].astype(np.float32, copy=False))
            else:
                probs = np.zeros((classes, *window.shape[:2]), np.float32)
                votes = out.get("confidence", np.float32(1))
                values = np.broadcast_to(votes, window.shape[:2])[None]
                np.put_along_axis(probs, out["labels"][None].astype(np.intp), values, axis=0)
            return np.concatenate([probs, out["agreement"][None]]) if agreement else probs

        def finish(top: int, left: int, block: Scores) -> None:
            place = (slice(top, top + block.shape[1]), slice(left, left + block.shape[2]))
            labels[place] = block[:classes].argmax(axis=0)
            if scores is not None:
                scores[place] = block[:classes].max(axis=0)
            if agreed is not None:
                agreed[place] = block[classes]

        blend(rows, columns, tile_scores, finish)
        return Prediction(labels, scores, agreed, len(rows) * len(columns))

    def _forward(self, image: Pixels, names: frozenset[str], deadline: float) -> Result:
        """Outputs of one image without the batch axis, cropped to its size."""
        height, width = image.shape[:2]
        if self._static is not None and (height, width) != self._static:
            fill = [round(255 * value) for value in self.manifest.input.mean]
            padded = np.empty((*self._static, image.shape[2]), np.uint8)
            padded[:] = fill
            padded[:height, :width] = image
            image = padded
        if self.batcher is not None:
            out = dict(self.batcher(image, names, deadline))
        else:
            out = self._run([image], names)[0]
        if self._static is not None:
            for name in set(out) & {"labels", "confidence", "agreement", "logits"}:
                out[name] = out[name][..., :height, :width]
        return out

    def _run(self, images: list[Pixels], names: frozenset[str]) -> list[Result]:
        batch = self._pack(images)
        out = self._runner(batch, names)
        return [{name: value[i] for name, value in out.items()} for i in range(len(images))]

    def _pack(self, images: list[Pixels]) -> NDArray[Any]:
        """A batch in the graph's layout."""
        layout = self.manifest.graph.input_layout
        height, width, channels = images[0].shape
        static = self.manifest.graph.static_shape
        number = static[0] if static else len(images)
        if layout == "uint8_nhwc":
            if number == 1:
                return images[0][None]
            batch = np.zeros((number, height, width, channels), np.uint8)
            for index, image in enumerate(images):
                batch[index] = image
            return batch
        planes = np.zeros((number, channels, height, width), np.uint8)
        for index, image in enumerate(images):
            # OpenCV splits channels ten times as fast as a strided numpy copy
            cv2.split(image, list(planes[index]))
        return planes.astype(np.float32) if layout == "float32_nchw" else planes

    def infer(self, batch: NDArray[np.uint8], names: frozenset[str]) -> Result:
        """Run the graph on a ``(B, H, W, C)`` uint8 batch as it is: no resizing, no tiles."""
        return self._runner(self._pack(list(batch)), names)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of the graph."""
        return self._runner.outputs

    def _self_test(self) -> float:
        """Warm up, and compare the bundle's samples; the smallest agreement."""
        height, width = self._static or self.manifest.input.crop
        blank = np.zeros((height, width, self.manifest.input.channels), np.uint8)
        try:
            self.predict(blank, confidence=True, agreement=True)
            samples = [self._read_sample(s.image, s.labels) for s in self.manifest.samples]
            if self._settings.fused and "logits_stride" in self.outputs and not self._runner.on_gpu:
                plain = [self._predict_sample(image) for image, _ in samples]
                self._fused = True
                # a single differing pixel puts the graph's own labels back in charge
                fused = [self._predict_sample(image) for image, _ in samples]
                equal = all(np.array_equal(a, b) for a, b in zip(plain, fused, strict=True))
                self._fused = bool(samples) and equal
            found = [float(np.mean(self._predict_sample(i) == labels)) for i, labels in samples]
        except BundleError:
            raise
        # whatever the runtime raises, the bundle cannot be served here
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{self.bundle.path} does not run on {self.runtime}: {reason}") from error
        agreement = min(found, default=1.0)
        needed = MIN_SAMPLE_AGREEMENT[self.bundle.artifact.precision]
        if not agreement >= needed:
            raise BundleError(
                f"{self.bundle.path} agrees with its samples on {agreement:.2%} of the pixels on "
                f"{self.runtime}, {needed:.2%} is needed; run python -m export.parity "
                f"{self.bundle.folder}"
            )
        return agreement

    def _predict_sample(self, image: Pixels) -> Labels:
        return self._predict_whole(image, image.shape[:2], False, False, float("inf")).labels

    def _read_sample(self, image: str, labels: str) -> tuple[Pixels, Labels]:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[self.manifest.input.channels]
        with Image.open(self.bundle.folder / image) as opened:
            pixels = np.asarray(opened.convert(mode))
        with Image.open(self.bundle.folder / labels) as opened:
            expected = np.asarray(opened)
        return pixels.reshape(*pixels.shape[:2], -1), expected

    def __enter__(self) -> Engine:
        """Count a user, so that a reload closes the engine only after its last request."""
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Uncount a user."""
        with self._lock:
            self._users -= 1
            last = self._closing and self._users == 0
        if last:
            self._release()

    def close(self) -> None:
        """Release the runtime once nobody uses the engine."""
        with self._lock:
            last = not self._closing and self._users == 0
            self._closing = True
        if last:
            self._release()

    def _release(self) -> None:
        if self.batcher is not None:
            self.batcher.close()
        self._runner.close()


def open_engine(folder: Path, settings: Settings) -> Engine:
    """Check a bundle and load the best of its files that works here.

    Raises:
        BundleError: If none can be served.
    """
    bundles = check_bundle(folder, settings)
    for bundle in bundles[:-1]:
        try:
            return Engine(bundle, settings)
        except BundleError as error:
            logger.warning("%s is passed over: %s", bundle.artifact.name, error)
    return Engine(bundles[-1], settings)


def _fit(result: Prediction, size: tuple[int, int]) -> Prediction:
    """Bring maps of the working size to ``size``: labels by nearest neighbour, scores bilinearly."""
    if result.labels.shape != size:
        resized = cv2.resize(result.labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        result.labels = np.asarray(resized, np.uint8)
    for name in ("confidence", "agreement"):
        scores = getattr(result, name)
        if scores is not None and scores.shape != size:
            setattr(result, name, cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR))
    return result
