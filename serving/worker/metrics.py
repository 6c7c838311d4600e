"""Prometheus metrics, merged over worker processes; every label has a bounded set of values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protoseg.manifest import NOVEL, Manifest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BINS = 10


class Metrics:
    """All metrics of the service. Use ``metrics()``: a process has one set."""

    def __init__(self) -> None:
        # prometheus_client looks at PROMETHEUS_MULTIPROC_DIR when it is imported: BentoML sets it first
        from prometheus_client import Counter, Gauge, Histogram

        self.requests = Counter("protoseg_requests", "Requests by route and status", ["route", "status"])
        self.seconds = Histogram(
            "protoseg_request_seconds", "Seconds of a request", ["route"], buckets=_SECONDS
        )
        self.stages = Histogram(
            "protoseg_stage_seconds", "Seconds of a stage of a request", ["stage"], buckets=_SECONDS
        )
        self.in_flight = Gauge("protoseg_in_flight", "Admitted requests", multiprocess_mode="livesum")
        self.waiting = Gauge(
            "protoseg_queue_depth", "Admitted requests that no thread computes yet",
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.rejected = Counter("protoseg_rejected", "Requests refused before inference", ["reason"])
        self.batch_size = Histogram(
            "protoseg_batch_size", "Images in an inference", buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.class_pixels = Counter("protoseg_class_pixels", "Predicted pixels by class", ["class_name"])
        self.confidence_pixels = Counter(
            "protoseg_confidence_pixels", "Pixels by bin of confidence (lower edge)", ["bin"]
        )
        self.agreement = Histogram(
            "protoseg_agreement", "Mean probability that the linear head gives to the labels of an image",
            buckets=tuple(round(i / _BINS, 1) for i in range(1, _BINS + 1)),
        )  # fmt: skip
        self.novel_pixels = Counter(
            "protoseg_novel_pixels", "Pixels by whether they are unlike everything labelled", ["novel"]
        )
        self.baseline_novel = Gauge(
            "protoseg_baseline_novel_fraction", "Share of novel pixels over training images",
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.baseline_class = Gauge(
            "protoseg_baseline_class_fraction", "Share of a class over training images",
            ["class_name"], multiprocess_mode="livemax",
        )  # fmt: skip
        self.baseline_confidence = Gauge(
            "protoseg_baseline_confidence_fraction", "Share of a confidence bin over training images",
            ["bin"], multiprocess_mode="livemax",
        )  # fmt: skip
        self.model = Gauge(
            "protoseg_model_info", "1 for the served model", ["name", "version", "sha256"],
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.reloads = Counter("protoseg_reloads", "Reloads by result", ["result"])
        self.hard_kept = Counter("protoseg_hard_kept", "Images kept for labelling", ["result"])
        self.images = Counter("protoseg_images", "Images segmented")
        self.last_image = Gauge(
            "protoseg_last_image_timestamp_seconds", "When the last image was segmented (Unix time)",
            multiprocess_mode="livemax",
        )  # fmt: skip
        self._served: tuple[str, str, str] | None = None

    def serve(self, manifest: Manifest, sha256: str) -> None:
        """Say which model is served and what its training data looked like."""
        if self._served is not None:
            self.model.labels(*self._served).set(0)
        self._served = (manifest.name, manifest.version, sha256[:12])
        self.model.labels(*self._served).set(1)
        if manifest.baseline is None:
            return
        if manifest.baseline.novel_fraction is not None:
            self.baseline_novel.set(manifest.baseline.novel_fraction)
        for item, share in zip(manifest.classes, manifest.baseline.class_fractions, strict=False):
            self.baseline_class.labels(item.name).set(share)
        for index, share in enumerate(manifest.baseline.confidence_histogram):
            self.baseline_confidence.labels(_bin(index)).set(share)

    def observe_prediction(
        self,
        manifest: Manifest,
        pixels: NDArray[np.int64],
        confidence: NDArray[np.float32] | None,
        label_probability: float | None,
        images: int = 1,
    ) -> None:
        """Count classes, confidence and the mean probability of the labels of an image, or of several."""
        self.images.inc(images)
        self.last_image.set_to_current_time()
        for index in np.flatnonzero(pixels).tolist():
            self.class_pixels.labels(manifest.classes[index].name).inc(int(pixels[index]))
        if confidence is not None:
            # a thousand pixels tell the shape of the histogram; all of them would cost milliseconds
            step = max(1, confidence.size // 1000)
            shares = np.histogram(confidence.ravel()[::step], _BINS, (0.0, 1.0))[0]
            for index in np.flatnonzero(shares).tolist():
                self.confidence_pixels.labels(_bin(index)).inc(int(shares[index]) * step)
        if label_probability is not None:
            self.agreement.observe(label_probability)

    def observe_novelty(self, novelty: NDArray[np.float32] | None) -> None:
        """Count novel pixels and the others of an image whose novelty was computed."""
        if novelty is not None:
            novel = int((novelty >= NOVEL).sum())
            self.novel_pixels.labels("yes").inc(novel)
            self.novel_pixels.labels("no").inc(novelty.size - novel)


def _bin(index: int) -> str:
    return f"{index / _BINS:.1f}"


@cache
def metrics() -> Metrics:
    """The metrics of this process."""
    return Metrics()


def _forget_dead_workers(folder: Path) -> None:
    """Drop live gauges of killed workers, which nobody else does."""
    from prometheus_client import multiprocess

    forget: Any = multiprocess.mark_process_dead
    pids = {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_*.db")}
    for pid in pids:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            forget(int(pid), str(folder))
        except (PermissionError, ValueError):
            continue


def _registry() -> Any:
    """The registry that speaks for all workers."""
    from prometheus_client import REGISTRY, CollectorRegistry, multiprocess

    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return REGISTRY
    _forget_dead_workers(Path(folder))
    registry = CollectorRegistry()
    collector: Any = multiprocess.MultiProcessCollector
    collector(registry)
    return registry


def render_metrics() -> bytes:
    """Prometheus text of all workers."""
    from prometheus_client import generate_latest

    return generate_latest(_registry())


class Totals(NamedTuple):
    """What all workers have done since the start."""

    images: int
    """Images segmented."""
    last_image: float
    """Unix time of the last one in seconds, 0 before the first."""
    requests: Mapping[tuple[str, str], int]
    """Requests by route and status."""
    stages: Mapping[str, tuple[int, float]]
    """Number and seconds of each stage of requests."""


def totals() -> Totals:
    """Counts of all workers, from the same numbers as ``render_metrics``."""
    values: dict[str, float] = {}
    requests: dict[tuple[str, str], int] = {}
    stages: dict[str, list[float]] = {}
    for family in _registry().collect():
        for sample in family.samples:
            if sample.name == "protoseg_requests_total":
                requests[sample.labels["route"], sample.labels["status"]] = int(sample.value)
            elif sample.name in ("protoseg_stage_seconds_count", "protoseg_stage_seconds_sum"):
                both = stages.setdefault(sample.labels["stage"], [0, 0])
                both[sample.name.endswith("sum")] = sample.value
            else:
                values[sample.name] = sample.value
    return Totals(
        images=int(values.get("protoseg_images_total", 0)),
        last_image=values.get("protoseg_last_image_timestamp_seconds", 0.0),
        requests=requests,
        stages={name: (int(count), seconds) for name, (count, seconds) in stages.items()},
    )
