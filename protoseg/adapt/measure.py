"""IoU by class before and after a change, on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protoseg.adapt.given import listed_data
from protoseg.checkpoint import Checkpoint
from protoseg.evaluate.measure import evaluate_segmenter, read_samples
from protoseg.evaluate.results import EvalResult
from protoseg.processes import Processes


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images."""

    before: EvalResult
    """Of the network as it was; classes of masks that it does not have are not counted."""
    after: EvalResult
    """Of the network as it is now."""
    names_before: list[str]
    """Classes of ``before`` by id: with the new class, where its masks have it."""
    names_after: list[str]
    """Classes of ``after`` by id."""
    shared: list[str]
    """Classes that both networks have."""
    head: str
    """Head that labels."""

    def to_json(self) -> dict[str, Any]:
        """Both as plain values."""
        return {
            "head": self.head,
            "before": self.before.to_json(self.names_before),
            "after": self.after.to_json(self.names_after),
        }


def compare(before: Checkpoint, after: Checkpoint, val: Path) -> Comparison:
    """Measure both networks, on the device that they are on.

    Args:
        before: The network as it was.
        after: The changed one; where it has more classes its ids are those of the masks for both.
        val: List of ``image mask`` lines.

    Raises:
        DataError: If the list or a file of it cannot be read.
    """
    processes = Processes(device=before.segmenter.bank.prototypes.device)
    grown = len(after.info.classes) >= len(before.info.classes)

    def measured(network: Checkpoint) -> tuple[EvalResult, list[str]]:
        info = after.info if grown else network.info
        samples, _ = read_samples(listed_data(info.data, val), "val", info)
        found = evaluate_segmenter(network.segmenter, info, samples, processes, boundary=False)
        return found, [item.name for item in info.classes]

    (old, old_names), (new, new_names) = measured(before), measured(after)
    if grown:
        shared = new_names[: len(before.info.classes)]
    else:
        shared = [name for name in new_names if name in old_names]
    return Comparison(old, new, old_names, new_names, shared, before.info.best_head())


def format_comparison(found: Comparison) -> str:
    """IoU by class in percent, before and after, with the mean of the classes that both have."""
    head, width = (
        found.head,
        max(len(name) for name in [*found.names_after, *found.names_before, "mean of those in both"]),
    )
    lines = [f"{f'IoU, %, {head} head':<{width}} {'before':>8} {'after':>8} {'change':>8}"]
    table: dict[str, list[float]] = {}
    for name in dict.fromkeys([*found.names_before, *found.names_after]):
        table[name] = [
            result.per_class[head][names.index(name)] if name in names else math.nan
            for result, names in ((found.before, found.names_before), (found.after, found.names_after))
        ]
        lines.append(f"{name:<{width}} {_cells(table[name])}")
    means = [_mean([table[name][i] for name in found.shared]) for i in (0, 1)]
    return "\n".join([*lines, "-" * len(lines[0]), f"{'mean of those in both':<{width}} {_cells(means)}"])


def _cells(pair: Sequence[float]) -> str:
    change = pair[1] - pair[0]
    return " ".join(f"{'-' if math.isnan(value) else format(100 * value, sign + '.2f'):>8}"
                    for value, sign in ((pair[0], ""), (pair[1], ""), (change, "+")))  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
