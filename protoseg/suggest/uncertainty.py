"""How doubtful each pixel of a prediction is: scores in [0, 1], higher where it is more likely wrong.

Which of them finds wrong pixels is measured by ``python -m benchmarks.trust``; docs/suggest.md has the
figures and why ``linear`` is the default.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from protoseg.inference import HeadLogits, HeadName, score
from protoseg.method.pseudo_labels import fuse, head_distance, label_probability

ScoreName = Literal["linear", "confidence", "entropy", "margin", "disagreement", "distance"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
NEED_PROTOTYPES: tuple[ScoreName, ...] = ("disagreement", "distance")


def head_probabilities(logits: HeadLogits, head: HeadName) -> Tensor:
    """Probabilities (B, C, H, W) of a head.

    Raises:
        ValueError: If the head needs prototypes and there are none.
    """
    if head == "linear":
        return logits.linear.softmax(1)
    if logits.prototype is None:
        raise ValueError(f"head {head!r} needs prototypes, this network has none; use head 'linear'")
    return logits.prototype.softmax(1) if head == "prototype" else fuse(logits.linear, logits.prototype)


def suspicion(logits: HeadLogits, name: ScoreName, head: HeadName, temperature: float) -> Tensor:
    """Doubt about each pixel's label under ``head``.

    * ``linear``: one minus ``label_probability``, the probability that the linear head gives to the label,
      whichever head chose it;
    * ``confidence``: one minus the head's own highest probability;
    * ``entropy``: entropy of the head's probabilities over ``log C``;
    * ``margin``: one minus the difference of the head's two highest probabilities;
    * ``disagreement``: total variation distance of the two heads, ``head_distance``;
    * ``distance``: ``(1 - cos) / 2`` to the nearest prototype of the label (its soft minimum where the bank
      pools by logsumexp).

    Args:
        logits: Scores of both heads, (B, C, H, W) each.
        name: Score.
        head: Head that labels.
        temperature: The prototype bank's temperature, for ``distance``.

    Returns:
        (B, H, W) float32 in [0, 1].

    Raises:
        ValueError: If the score or the head needs prototypes and there are none.
    """
    if name in NEED_PROTOTYPES and logits.prototype is None:
        raise ValueError(f"score {name!r} needs prototypes, this network has none; use score 'linear'")
    if name == "linear":
        return 1 - label_probability(logits.linear, score(logits, head).label)
    if name == "disagreement":
        assert logits.prototype is not None
        return head_distance(logits.linear, logits.prototype)
    if name == "distance":
        assert logits.prototype is not None
        cosine = temperature * _at(logits.prototype, score(logits, head).label)
        # a class without prototypes lies below every cosine
        return ((1 - cosine) / 2).clamp(0, 1)
    probs = head_probabilities(logits, head)
    if name == "entropy":
        entropy: Tensor = torch.special.entr(probs).sum(1) / math.log(max(probs.shape[1], 2))
        return entropy
    highest = probs.topk(min(2, probs.shape[1]), 1).values
    if name == "margin":
        return 1 - (highest[:, 0] - highest[:, -1]) if probs.shape[1] > 1 else 1 - highest[:, 0]
    return 1 - highest[:, 0]


def _at(values_BCHW: Tensor, label_BHW: Tensor) -> Tensor:
    return values_BCHW.gather(1, label_BHW[:, None])[:, 0]
