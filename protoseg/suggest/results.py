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

FITTED = {"prototypes": (3.5, 10), "clusters": (2.2, 8), "linear": (1.4, 9), "first images": (2.2, 8)}
"""Linear classifiers on a frozen encoder: points of mIoU above random images, mean over ten seeds, and with
how many of them it was above; by way to choose or score, ``suggest_probe_voc`` in docs/suggest.md."""
TRAINED = {
    "the default method": {
        "prototypes": (2.2, 1.0, 3.0),
        "clusters": (0.9, -0.5, 2.6),
        "first images": (3.4, 2.3, 4.3),
    },
    "labels alone": {
        "prototypes": (-0.1, -0.7, 0.6),
        "clusters": (0.5, -0.7, 2.7),
        "linear": (-0.8, -1.6, -0.3),
    },
}
"""Networks trained briefly, by method: mean, lowest and highest of three seeds; ``suggest_voc_default`` and
``suggest_voc`` there."""
DOUBT_ALONE = "images of the highest entropy, margin or least probability alone were worse than random ones"


def evidence(way: str) -> str:
    """What is known of a way to choose, or of a score, and what follows."""
    if way not in FITTED:
        return f"measured on VOC (docs/suggest.md): not this score; {DOUBT_ALONE}"
    gain, seeds = FITTED[way]
    text = (
        f"measured on VOC (docs/suggest.md), points of mIoU against random images: {gain:+.1f} with linear "
        f"classifiers, better with {seeds} of 10 seeds"
    )
    found = {method: gains[way] for method, gains in TRAINED.items() if way in gains}
    for method, (mean, low, high) in found.items():
        text += f"; {mean:+.1f} ({low:+.1f} to {high:+.1f}) with networks trained briefly by {method}"
    if all(low > 0 for _, low, _ in found.values()):
        return text
    return f"{text}, for which random images may do as well"


def all_evidence() -> str:
    """What is known of all of them."""
    fitted = ", ".join(f"{way} {gain:+.1f} ({seeds})" for way, (gain, seeds) in FITTED.items())
    trained = "; ".join(
        f"by {method}: "
        + ", ".join(f"{way} {low:+.1f} to {high:+.1f}" for way, (_, low, high) in gains.items())
        for method, gains in TRAINED.items()
    )
    return (
        "Measured on VOC, points of mIoU against random images. Linear classifiers on a frozen encoder, and "
        f"how many of 10 seeds were better: {fitted}; {DOUBT_ALONE}. Networks trained briefly, three seeds, "
        f"{trained}. See docs/suggest.md."
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
