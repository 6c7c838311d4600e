"""What images show that were chosen, and how well rare classes are found; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RARE_SHARE = 1 / 3


def rare_classes(pixels: NDArray[np.int64]) -> list[int]:
    """The third of all classes with the fewest labelled pixels, (C,)."""
    return np.argsort(pixels, kind="stable")[: round(len(pixels) * RARE_SHARE)].tolist()


def figures(iou: Sequence[float], pixels: NDArray[np.int64], rare: Sequence[int]) -> dict[str, Any]:
    """Figures of a choice.

    Args:
        iou: IoU of each class on val.
        pixels: (N, C) pixels of each class in each chosen image; class 0 is the background.
        rare: Rare classes.

    Returns:
        ``rare_iou``: their mean IoU; ``bought``: ``classes`` that an image shows beside the background, and
        shares of the pixels that are no background (``objects``) and of rare classes (``rare``).
    """
    total = pixels.sum()
    bought = {
        "classes": float((pixels[:, 1:] > 0).sum() / len(pixels)),
        "objects": float(pixels[:, 1:].sum() / total),
        "rare": float(pixels[:, rare].sum() / total),
    }
    return {"rare_iou": float(np.mean([iou[i] for i in rare])), "bought": bought}
