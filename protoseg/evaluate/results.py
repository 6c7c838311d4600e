"""What an evaluation counts, and the metrics behind the counts.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protoseg.evaluate import boundary as edges
from protoseg.evaluate import counts, metrics
from protoseg.inference import Scored

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EvalResult:
    """Metrics by head (``linear``, ``prototype``, ``fused``); shares are in [0, 1].

    NaN stands for "nothing to measure": a class that no target has, or no labelled pixel at all.
    """

    miou: dict[str, float]
    """Mean IoU over the classes present in the targets."""
    per_class: dict[str, list[float]]
    """IoU by class id."""
    pixel_accuracy: dict[str, float]
    """Share of labelled pixels with the right class."""
    boundary_f: dict[str, float]
    """Boundary F-score, mean over classes; NaN when it was not asked for."""
    boundary_f_per_class: dict[str, list[float]]
    """Boundary F-score by class id."""
    ece: dict[str, float]
    """Expected calibration error, 15 bins."""
    confusion: dict[str, Tensor]
    """(C, C) int64 pixel counts; rows are targets, columns predictions."""
    num_images: int
    """Images evaluated, over all processes."""
    class_images: list[int]
    """Images that hold a class, by class id."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads measured."""
        return tuple(self.miou)

    def to_json(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """The metrics as plain values for JSON, NaN as null.

        Per-class lists become objects when names are given. The confusion matrices, which are large,
        are left out.
        """

        def by_class(values: list[float]) -> Any:
            plain = [_plain(value) for value in values]
            return plain if class_names is None else dict(zip(class_names, plain, strict=True))

        return {
            **{
                name: {head: _plain(value) for head, value in getattr(self, name).items()}
                for name in ("miou", "pixel_accuracy", "boundary_f", "ece")
            },
            "per_class": {head: by_class(values) for head, values in self.per_class.items()},
            "boundary_f_per_class": {
                head: by_class(values) for head, values in self.boundary_f_per_class.items()
            },
            "num_images": self.num_images,
        }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class Accumulator:
    """Integer counts of several heads; counts of processes and images add up exactly.

    Attributes:
        confusion: (heads, C, C) int64.
        calibration: (heads, 3, bins) int64.
        boundary: (heads, 2, C) int64.
        num_images: () int64.
        class_images: (C,) int64.
    """

    confusion: Tensor
    calibration: Tensor
    boundary: Tensor
    num_images: Tensor
    class_images: Tensor

    @classmethod
    def empty(cls, num_heads: int, num_classes: int, device: torch.device) -> Accumulator:
        """All counts zero."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            zeros(num_heads, num_classes, num_classes),
            zeros(num_heads, 3, counts.DEFAULT_BINS),
            zeros(num_heads, 2, num_classes),
            zeros(),
            zeros(num_classes),
        )

    def add(self, scored: Sequence[Scored], target: Tensor, ignore_index: int, boundary: bool) -> None:
        """Count one image: what each head says, (1, H, W), and the (H, W) int64 target."""
        num_classes = self.confusion.shape[-1]
        valid = counts.counted(target, num_classes, ignore_index)
        for index, (label, confidence) in enumerate(scored):
            table = counts.confusion_matrix(label[0], target, num_classes, ignore_index)
            self.confusion[index] += table
            right = label[0] == target
            self.calibration[index] += counts.calibration_counts(confidence[0], right, valid)
        if boundary:
            labels = torch.cat([label for label, _ in scored]).cpu().numpy()
            found = edges.boundary_counts(labels, target.cpu().numpy(), num_classes, ignore_index)
            self.boundary += torch.from_numpy(found).to(target.device)
        self.num_images += 1
        self.class_images += table.any(1)

    def reduced(self, reduce: Reduce) -> Accumulator:
        """Summed over processes, in one call of ``reduce``."""
        parts = (self.confusion, self.calibration, self.boundary, self.num_images, self.class_images)
        flat = reduce(torch.cat([part.flatten() for part in parts]))
        pieces = torch.split(flat, [part.numel() for part in parts])
        return Accumulator(*(piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)))

    def result(self, heads: Sequence[str], *, boundary: bool) -> EvalResult:
        """The metrics behind the counts."""
        tables = self.confusion.cpu().numpy()
        f_scores = [edges.boundary_f_per_class(table) for table in self.boundary.cpu().numpy()]
        calibration = self.calibration.cpu()
        each = range(len(heads))
        return EvalResult(
            miou={heads[i]: metrics.miou(tables[i]) for i in each},
            per_class={heads[i]: metrics.iou_per_class(tables[i]).tolist() for i in each},
            pixel_accuracy={heads[i]: metrics.pixel_accuracy(tables[i]) for i in each},
            boundary_f={heads[i]: metrics.mean_of_present(f_scores[i]) for i in each},
            boundary_f_per_class={heads[i]: f_scores[i].tolist() for i in each} if boundary else {},
            ece={heads[i]: counts.expected_calibration_error(calibration[i]) for i in each},
            confusion={heads[i]: torch.from_numpy(tables[i]) for i in each},
            num_images=int(self.num_images),
            class_images=self.class_images.tolist(),
        )


def format_table(result: EvalResult, class_names: Sequence[str]) -> str:
    """IoU and boundary F by class and head in percent, with the totals below."""
    heads = result.heads
    width = max(len(name) for name in [*class_names, "expected calibration error"])

    def line(name: str, iou: Sequence[float], edge: Sequence[float] = ()) -> str:
        cells = [*(_percent(value) for value in iou), *(_percent(value) for value in edge)]
        return name.ljust(width) + "".join(f"{cell:>13}" for cell in cells)

    edges = result.boundary_f_per_class
    titles = [*heads, *(f"F {head}" for head in heads if head in edges)]
    unit = "IoU, %  (F: boundary)" if edges else "IoU, %"
    lines = [unit.ljust(width) + "".join(f"{title:>13}" for title in titles)]
    for index, name in enumerate(class_names):
        iou = [result.per_class[head][index] for head in heads]
        lines.append(line(name, iou, [edges[head][index] for head in heads if head in edges]))
    lines.append("-" * len(lines[0]))
    means = [result.boundary_f[head] for head in heads if head in edges]
    lines.append(line("mean of classes present", [result.miou[head] for head in heads], means))
    lines.append(line("pixel accuracy", [result.pixel_accuracy[head] for head in heads]))
    lines.append(line("expected calibration error", [result.ece[head] for head in heads]))
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
