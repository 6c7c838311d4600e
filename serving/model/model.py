"""A loaded bundle that segments images: working size, static shapes, batches, upsampling, tiles."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protoseg.explain.reasons import Nearest, nearest_cells
from serving.errors import ServingError
from serving.model.batching import MicroBatcher, Result
from serving.model.bundle import Bundle, read_bundle_atlas
from serving.model.network import LABEL_PROBABILITY, NOVELTY, Network
from serving.model.pack import pack, pad
from serving.model.prediction import Prediction
from serving.model.tiles import predict_tiles
from serving.model.upsample import argmax_planes, upsample
from serving.pixels.decode import Pixels, resize
from serving.pixels.maps import Labels, Scores
from serving.pixels.png import make_palette
from serving.settings import Settings

_MIN_TILE = 512
_EXPLAINING = frozenset({"prototype", "similarity"})
_FULL_SIZE = frozenset({"labels", "confidence", LABEL_PROBABILITY, NOVELTY, "logits"})


class Model:
    """One loaded bundle. Thread-safe; as a context manager it counts its users.

    Args:
        bundle: A checked bundle.
        network: Its graphs.
        settings: Settings of the service.
    """

    def __init__(self, bundle: Bundle, network: Network, settings: Settings) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.palette = make_palette(self.manifest)
        self.outputs = network.outputs
        self.runtime = network.description
        self.has_confidence = bool({"confidence", "logits", "logits_stride"} & set(self.outputs))
        self.has_label_probability = LABEL_PROBABILITY in self.outputs
        self.atlas = read_bundle_atlas(bundle) if set(self.outputs) >= _EXPLAINING else None
        self.has_novelty = NOVELTY in self.outputs
        self.upsampling = "logits" if {"logits", "logits_stride"} & set(self.outputs) else "nearest"
        # outside the graph the argmax is cheaper on a CPU, unless a cut already leaves it labels only
        self.can_fuse = not network.on_gpu and "logits_stride" in (network.cut_outputs or self.outputs)
        self.fused = False
        self.equal_labels = 0.0
        """Smallest share of a sample's pixels with the label that torch gave them; of the self test."""
        self.network = network
        self._settings = settings
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()
        static = self.manifest.graph.static_shape
        self.static_size = static[1:] if static else None
        limit = settings.batch_max or (8 if network.on_gpu else 1)
        self.batch_max = min(limit, static[0]) if static else limit
        self.batcher: MicroBatcher | None = None
        if self.batch_max > 1:
            self.batcher = MicroBatcher(
                self._run,
                max_batch=self.batch_max,
                delay_s=settings.batch_delay_ms / 1000,
                max_queue=settings.queue + settings.pool_threads + 2 * self.batch_max,
            )

    @property
    def pool_threads(self) -> int:
        """Requests worth computing at a time."""
        threads = self._settings.pool_threads
        return max(threads, 2 * self.batch_max) if self.batcher is not None else threads

    @property
    def tile_size(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        if self.static_size is not None:
            return self.static_size
        if self._settings.tile is not None:
            return self._settings.tile, self._settings.tile
        height, width = self.manifest.input.crop
        return max(height, _MIN_TILE), max(width, _MIN_TILE)

    def predict(
        self,
        image: Pixels,
        *,
        confidence: bool = False,
        label_probability: bool = False,
        nearest: bool = False,
        novelty: bool = False,
        tile: bool = False,
        at_model_size: bool = False,
        deadline: float = float("inf"),
        alive: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """Segment one image.

        Args:
            image: ``(H, W, C)`` uint8, upright.
            confidence: Give the largest probability too, where the graph can.
            label_probability: Give the linear head's probability of the label too, where the graph can.
            nearest: Give the nearest prototypes too; the graph must have them, and the image goes through it
                at once.
            novelty: Give novelty too, where the graph can.
            tile: Leave the image at its own size and compute it in overlapping tiles.
            at_model_size: Give maps at the working size instead of the image's own.
            deadline: ``time.monotonic()`` that waiting in a batch respects.
            alive: Called between tiles; raises when nobody waits any more.

        Raises:
            ServingError: 422 for ``nearest`` of an image that would be tiled.
        """
        confidence = confidence and self.has_confidence
        label_probability = label_probability and self.has_label_probability
        novelty = novelty and self.has_novelty
        working = image if tile else resize(image, self.manifest.input.resize)
        size = working.shape[:2] if at_model_size else image.shape[:2]
        height, width = working.shape[:2]
        window = self.tile_size
        larger = height > window[0] or width > window[1]
        too_large = height * width > self._settings.max_network_pixels
        if self.static_size is not None:
            too_large = larger
        if not too_large and not (tile and larger):
            return self.predict_whole(
                working, size, confidence=confidence, label_probability=label_probability, nearest=nearest,
                novelty=novelty, deadline=deadline,
            ).resized(size)  # fmt: skip
        if nearest:
            most = math.prod(window) if self.static_size else self._settings.max_network_pixels
            raise ServingError(
                422, "bad_parameter",
                f"pixels are not explained in tiles: the network would see {width}x{height} pixels; give an "
                f"image of at most {most} pixels, and ask for no tiles or windows",
            )  # fmt: skip
        return self._predict_tiled(
            working, window, confidence=confidence, label_probability=label_probability, novelty=novelty,
            deadline=deadline, alive=alive,
        ).resized(size)  # fmt: skip

    def _predict_tiled(
        self, working: Pixels, window: tuple[int, int], *, confidence: bool, label_probability: bool,
        novelty: bool, deadline: float, alive: Callable[[], None],
    ) -> Prediction:  # fmt: skip
        names = {"logits"} if "logits" in self.outputs else {"labels", "confidence"} & set(self.outputs)
        names |= {LABEL_PROBABILITY} if label_probability else set()
        names |= {NOVELTY} if novelty else set()

        def forward(tile: Pixels) -> Result:
            alive()
            return self._forward(tile, frozenset(names), deadline)

        return predict_tiles(
            working, window, len(self.manifest.classes), forward,
            confidence=confidence, label_probability=label_probability, novelty=novelty,
        )  # fmt: skip

    def predict_whole(
        self,
        working: Pixels,
        size: tuple[int, ...],
        *,
        confidence: bool = False,
        label_probability: bool = False,
        nearest: bool = False,
        novelty: bool = False,
        deadline: float = float("inf"),
    ) -> Prediction:
        """Segment an image of the working size at once.

        Args:
            working: ``(h, w, C)`` uint8.
            size: Wanted (height, width); maps keep the working size where the graph has no logits.
            confidence: Give the largest probability; the graph must have what it takes.
            label_probability: Give that output of the graph; it must have it.
            nearest: Give the nearest prototypes; likewise.
            novelty: Likewise.
            deadline: See ``predict``.
        """
        has = set(self.outputs)
        # stride logits are smaller to copy; full ones are only used where they are the only ones
        logits = {"logits_stride"} if "logits_stride" in has else {"logits"}
        from_graph = (size == working.shape[:2] and not self.fused) or self.upsampling == "nearest"
        names = {"labels"} if from_graph else logits
        if from_graph and confidence:
            names |= {"confidence"} if "confidence" in has else logits
        names |= {LABEL_PROBABILITY} if label_probability else set()
        names |= _EXPLAINING if nearest else set()
        names |= {NOVELTY} if novelty else set()
        out = self._forward(working, frozenset(names), deadline)
        labels, scores = out.get("labels"), out.get("confidence")
        if not from_graph or (confidence and scores is None):
            computed, scores = self._from_logits(out, working.shape[:2], size, confidence)
            labels = labels if from_graph else computed
        assert labels is not None
        return Prediction(
            labels,
            scores,
            out.get(LABEL_PROBABILITY),
            nearest=self._nearest(out, working) if nearest else None,
            novelty=out.get(NOVELTY),
        )

    def _nearest(self, out: Result, working: Pixels) -> Nearest:
        height, width = self.static_size or working.shape[:2]
        multiple = self.manifest.input.stride_multiple
        padded = (-height % multiple + height, -width % multiple + width)
        return nearest_cells(
            out["prototype"], out["similarity"], (working.shape[0], working.shape[1]), padded
        )

    def _from_logits(
        self, out: Result, working: tuple[int, ...], size: tuple[int, ...], confidence: bool
    ) -> tuple[Labels, Scores | None]:
        crop, wanted = (working[0], working[1]), (size[0], size[1])
        logits, through = out.get("logits_stride"), None
        if logits is None:
            logits = out["logits"]
        else:
            multiple = self.manifest.input.stride_multiple
            through = (-crop[0] % multiple + crop[0], -crop[1] % multiple + crop[1])
        return argmax_planes(lambda: upsample(logits, wanted, through, crop), confidence)

    def _forward(self, image: Pixels, names: frozenset[str], deadline: float) -> Result:
        """Outputs of one image without the batch axis, cropped to its size."""
        height, width = image.shape[:2]
        if self.static_size is not None and (height, width) != self.static_size:
            image = pad(image, self.static_size, self.manifest.input.mean)
        if self.batcher is not None:
            out = dict(self.batcher(image, names, deadline))
        else:
            out = self._run([image], names)[0]
        if self.static_size is not None:
            for name in _FULL_SIZE & set(out):
                out[name] = out[name][..., :height, :width]
        return out

    def _run(self, images: list[Pixels], names: frozenset[str]) -> list[Result]:
        out = self._infer(images, names)
        return [{name: value[i] for name, value in out.items()} for i in range(len(images))]

    def _infer(self, images: list[Pixels], names: frozenset[str]) -> Result:
        graph = self.manifest.graph
        number = graph.static_shape[0] if graph.static_shape else len(images)
        return self.network(pack(images, graph.input_layout, number), names)

    def infer(self, batch: NDArray[np.uint8], names: frozenset[str]) -> Result:
        """Run the graph on a ``(B, H, W, C)`` uint8 batch as it is: no resizing, no tiles."""
        return self._infer(list(batch), names)

    def __enter__(self) -> Model:
        """Count a user, so that a reload closes the model only after its last request."""
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
        """Release the runtime once nobody uses the model."""
        with self._lock:
            last = not self._closing and self._users == 0
            self._closing = True
        if last:
            self._release()

    def _release(self) -> None:
        if self.batcher is not None:
            self.batcher.close()
        self.network.close()
