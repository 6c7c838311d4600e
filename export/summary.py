"""What a bundle's files are like, as a table for people."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from export.runners.contract import Layout, adapt
from export.runners.ort import OrtRunner
from protoseg.manifest import Manifest, ParityReport


def measure_latency(
    path: Path, layout: Layout, shape: tuple[int, int, int, int], *, exact_qdq: bool = False
) -> float:
    """Median of five calls after two, in ms on the CPU; a first impression, not a benchmark."""
    image = adapt(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), layout)
    seconds = []
    with OrtRunner(path, exact_qdq=exact_qdq) as runner:
        for _ in range(7):
            start = time.perf_counter()
            runner(image)
            seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[2:]))


def format_table(folder: Path, manifest: Manifest) -> str:
    """Precision, size, parity and a first impression of the latency of every file."""
    height, width = manifest.input.crop
    size = manifest.graph.static_shape or (1, height, width)
    shape = (size[0], manifest.input.channels, *size[1:])
    rows = [("precision", "file", "MB", "parity", "max logit diff", "ms")]
    for item in manifest.files:
        exact = item.precision == "int8"
        ms = measure_latency(folder / item.name, manifest.graph.input_layout, shape, exact_qdq=exact)
        rows.append(
            (item.precision, item.name, f"{item.size / 1e6:.1f}", item.parity.status,
             _largest_difference(item.parity), f"{ms:.1f}")
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown = "x".join(map(str, shape))
    return "\n".join([*lines, f"(ms: median CPU call at {shown}, no benchmark; fp16 and int8 are for GPUs)"])


def _largest_difference(report: ParityReport) -> str:
    if not report.cases:
        return "-"
    values = [
        v for k, v in report.cases[0].metrics.items() if k.endswith("/max_logit_diff") and v is not None
    ]
    return f"{max(values):.2g}" if values else "-"
