"""The files that ``protoseg.suggest`` writes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from protoseg.data.images import save_whole, write_text

LIST_NAME, RECORD_NAME, SHEET_NAME = "suggested.txt", "suggested.json", "sheet.png"
SHEET_IMAGES = 48

MEASURED = {"prototypes": (3.5, 10), "clusters": (2.2, 8), "linear": (1.4, 9), "entropy": (-1.1, 3),
            "confidence": (-1.2, 3), "margin": (-1.7, 2)}  # fmt: skip
"""Points of mIoU above random images, mean over ten seeds, and with how many of them it was above: by way to
choose or score, ``suggest_probe_voc`` in docs/suggest.md."""


def evidence(way: str) -> str:
    """What is known of a way to choose, or of a score."""
    if way not in MEASURED:
        return "measured: not this score; others are compared with random images in docs/suggest.md"
    gain, seeds = MEASURED[way]
    advice = "" if gain > 0 else ": take random images instead"
    return (
        f"measured: {gain:+.1f} points of mIoU against random images on VOC, better with {seeds} of 10 seeds"
        f"{advice} (docs/suggest.md)"
    )


def headline(chosen: int, seen: int, text: str) -> str:
    """The sheet's first line."""
    first = f" (the first {SHEET_IMAGES})" if chosen > SHEET_IMAGES else ""
    return f"{chosen} of {seen} images to label {text}{first}"


def write_results(out: Path, names: Sequence[str], record: dict[str, Any], sheet: Image.Image) -> None:
    """Write the three files; they take their places together, once all are complete.

    Raises:
        DataError, OSError: If they cannot be written; earlier results are then untouched.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".suggest-", dir=out) as beside:
        folder = Path(beside)
        write_text(folder / RECORD_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        save_whole(folder / SHEET_NAME, sheet)
        write_text(folder / LIST_NAME, "".join(f"{name}\n" for name in names))
        for name in (RECORD_NAME, SHEET_NAME, LIST_NAME):
            (folder / name).replace(out / name)
