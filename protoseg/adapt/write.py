"""Writes a changed network: checkpoint, picture and figures, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protoseg.adapt.adapt import Adapted
from protoseg.adapt.measure import Comparison
from protoseg.adapt.sheet import change_sheet
from protoseg.checkpoint import CHECKPOINT_DIR, Checkpoint, save_checkpoint
from protoseg.data.images import save_whole, write_text
from protoseg.versions import git_revision, package_versions

SHEET_NAME, FIGURES_NAME = "adapt.png", "adapt.json"


def write_adapted(out: Path, source: Checkpoint, found: Adapted, comparison: Comparison | None) -> list[str]:
    """Write into a run folder; gives a line for each file.

    Args:
        out: The run folder, without a checkpoint.
        source: The network as it was.
        found: The changed one.
        comparison: What was measured; its figures go into the checkpoint, too.

    Raises:
        CheckpointError, DataError: If something cannot be written; a checkpoint comes last, so that there is
        none.
    """
    update: dict[str, Any] = {"versions": package_versions(), "git_revision": git_revision()}
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    if found.given and found.label is not None:
        made = found.checkpoint.info.adapted or []
        headline = (
            f"{made[-1].change} {' '.join(made[-1].classes)}, {source.info.name} at step {source.info.step}"
        )
        head = source.info.best_head()
        save_whole(
            out / SHEET_NAME, change_sheet(headline, found.given, found.label, source, found.checkpoint, head)
        )
        lines.append(f"picture     {out / SHEET_NAME}")
    if comparison is not None:
        update["metrics"] = {"step": source.info.step, "val": comparison.to_json()["after"]}
        write_text(out / FIGURES_NAME, json.dumps(comparison.to_json(), indent=2, allow_nan=False) + "\n")
        lines.append(f"figures     {out / FIGURES_NAME}")
    info = found.checkpoint.info.model_copy(update=update)
    save_checkpoint(out / CHECKPOINT_DIR, found.checkpoint.segmenter, info)
    return [*lines, f"checkpoint  {out / CHECKPOINT_DIR}"]
