"""What labels say about a teacher's confidences: temperatures, and the threshold for a wanted precision.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image, ``T`` temperatures that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from protoseg.errors import CheckpointError

Kind = Literal["none", "one", "class"]
TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-8, 13))
"""1/4 to 8, by a factor of 2 ** 1/4; 1, which changes nothing, is among them."""
BINS = 100
"""Confidences are told apart by 1 / BINS, and so are thresholds."""
FEW_PIXELS = 500
"""A class that the teacher names less often takes the temperature of all."""
LOWEST_LOG = 1e-12


class Evidence:
    """How right a teacher was on labelled images, by temperature, named class and confidence.

    Attributes:
        nll: (T, C) negative log-likelihood of the true class, summed over pixels by the class named.
        counts: (T, C, BINS, 2) pixels by temperature, named class and confidence: all, and the right ones.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        tried = len(TEMPERATURES)
        self.nll = torch.zeros(tried, num_classes, dtype=torch.float64, device=device)
        self.counts = torch.zeros(tried, num_classes, BINS, 2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, scores_BCHW: Tensor, target_BHW: Tensor) -> None:
        """Add images.

        Args:
            scores_BCHW: Logits, or logarithms of probabilities.
            target_BHW: Class ids; pixels with a value outside [0, C) are not looked at.
        """
        num_classes = scores_BCHW.shape[1]
        known = (target_BHW >= 0) & (target_BHW < num_classes)
        scores = scores_BCHW.movedim(1, -1)[known].float()
        target = target_BHW[known]
        named = scores.argmax(1)
        right = (named == target).double()
        for place, temperature in enumerate(TEMPERATURES):
            log_probs = (scores / temperature).log_softmax(1)
            true = log_probs.gather(1, target[:, None])[:, 0]
            self.nll[place].index_add_(0, named, -true.double())
            bins = (log_probs.amax(1).exp() * BINS).long().clamp(max=BINS - 1)
            table = self.counts[place].view(-1, 2)
            table.index_add_(0, named * BINS + bins, torch.stack([torch.ones_like(right), right], 1))

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> Evidence:
        """The evidence of all processes."""
        self.nll, self.counts = reduce(self.nll), reduce(self.counts)
        return self


class Verdict(NamedTuple):
    """What evidence says."""

    temperature: list[float]
    """For each class that is named."""
    threshold: float | None
    """Lowest tau that reaches the precision; None where none was asked for."""
    precision: float
    """Share of the believed pixels that is right, at that tau (0 where none was asked for)."""
    coverage: float
    """Share of all pixels that is believed, likewise."""
    reached: bool
    """Whether any tau reaches the precision."""


def judge(evidence: Evidence, kind: Kind, target_precision: float | None) -> Verdict:
    """Temperatures of the least negative log-likelihood, and the threshold behind them.

    Temperature scaling as in Guo et al. (arXiv 1706.04599), over all pixels or apart for each class that the
    teacher names; the threshold as in CW-BASS v2 (arXiv 2608.12773): the lowest tau at which the pixels of at
    least that confidence are right as often as wanted.

    Args:
        evidence: Of all processes.
        kind: Which temperatures.
        target_precision: In (0, 1), or None.
    """
    pixels = evidence.counts[0, :, :, 0].sum(1)
    places = torch.full_like(pixels, TEMPERATURES.index(1.0), dtype=torch.int64)
    if kind != "none" and pixels.sum() > 0:
        places[:] = evidence.nll.sum(1).argmin()
    if kind == "class":
        places = torch.where(pixels >= FEW_PIXELS, evidence.nll.argmin(0), places)
    temperature = [TEMPERATURES[place] for place in places.tolist()]
    if target_precision is None:
        return Verdict(temperature, None, 0.0, 0.0, True)
    counts = evidence.counts[places, torch.arange(len(places), device=places.device)].sum(0)
    above = counts.flip(0).cumsum(0).flip(0)
    precision = above[:, 1] / above[:, 0].clamp(min=1)
    good = ((precision >= target_precision) & (above[:, 0] > 0)).tolist()
    # where no tau will do, the strictest one
    place = good.index(True) if True in good else BINS - 1
    coverage = above[place, 0] / above[0, 0].clamp(min=1)
    return Verdict(temperature, place / BINS, float(precision[place]), float(coverage), True in good)


class Calibration(nn.Module):
    """Temperatures and threshold in use; saved with a run's states.

    Args:
        num_classes: C.
        threshold: tau as long as no label has said otherwise.
        teacher: Hash of the teacher from outside that they are of; empty for the own one.
    """

    temperature: Tensor
    threshold: Tensor

    def __init__(self, num_classes: int, threshold: float, teacher: str = "") -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(num_classes))
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.given, self.teacher = threshold, teacher

    def set(self, verdict: Verdict | None) -> None:
        """Take over a verdict; None: nothing is known of the teacher that labels now."""
        tau = self.given if verdict is None or verdict.threshold is None else verdict.threshold
        self.threshold.fill_(tau)
        self.temperature.copy_(torch.tensor([1.0] if verdict is None else verdict.temperature))

    def label(self, scores_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Class ids (B, H, W) and confidences: ``max softmax(scores / temperature of the class named)``."""
        named = scores_BCHW.argmax(1)
        probs = (scores_BCHW / self.temperature[named][:, None]).softmax(1)
        return named, probs.amax(1)

    def get_extra_state(self) -> dict[str, str]:
        """What the numbers belong to."""
        return {"teacher": self.teacher}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Compare it.

        Raises:
            CheckpointError: If the teacher from outside is another one.
        """
        if state["teacher"] != self.teacher:
            raise CheckpointError(
                f"the teacher from outside is {self.teacher[:12] or 'none'} (hash), the state was made with "
                f"{state['teacher'][:12] or 'none'}; give pseudo_labels.teacher or pseudo_labels.folder the "
                "value of then"
            )


def describe(verdict: Verdict, target_precision: float | None) -> str:
    """A line for the log."""
    low, high = min(verdict.temperature), max(verdict.temperature)
    text = f"temperature {low:.2f}" + (f" to {high:.2f}" if high > low else "")
    if verdict.threshold is None:
        return text
    text += (
        f", threshold {verdict.threshold:.2f}: {verdict.precision:.1%} of {verdict.coverage:.1%} are right"
    )
    wanted = target_precision or math.nan
    return text if verdict.reached else f"{text}, no threshold reaches {wanted:.1%}"
