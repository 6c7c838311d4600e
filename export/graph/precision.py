"""The precisions of a bundle as graph transforms: which one, from what, with what notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from protoseg.manifest import Precision


@dataclass(frozen=True)
class Context:
    """What a transform may look at."""

    batches: Sequence[NDArray[Any]]
    """Calibration batches in the element type and axes of the graph."""
    record: dict[str, Any]
    """Count and hash of the calibration images, for the manifest."""


def convert(
    model: onnx.ModelProto, precision: Precision, context: Context
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fp32 graph in another precision, and notes for the manifest.

    Raises:
        ExportError: If it cannot be converted.
    """
    from export.graph.half import audit, first_nodes, lower_to_half

    if precision == "fp16":
        peaks = audit(model, context.batches)
        lowered, notes = lower_to_half(model, peaks, first_nodes(model))
        return lowered, {"calibration": context.record, **notes}
    from export.graph.int8 import quantize

    return quantize(model, precision, context.batches, context.record)
