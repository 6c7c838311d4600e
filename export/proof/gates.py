"""How much a file may differ from its reference."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gates:
    """Thresholds of one comparison; None means "reported only"."""

    logit: float | None
    """Largest logit difference at sizes that are stride multiples, over the logit range."""
    logit_other: float | None
    """The same at other sizes, where the resampling of logits rounds differently."""
    logit_p999: float | None
    """99.9th percentile of the logit difference of any input, over the logit range."""
    equal_labels: float
    """Smallest share of equal labels on real images (made ones can be one great tie)."""
    equal_clear_labels: float
    """The same over pixels whose two best probabilities differ by more than 0.10."""
    probability: float | None
    """Largest difference of ``confidence``, ``novelty`` and, where labels are equal, ``agreement`` (all in
    [0, 1])."""
    explained: bool
    """Every differing label must be a near tie of the reference: margin within two tolerances."""
    miou_drop: float | None
    """Largest loss of mIoU on labelled images, as a fraction."""
    everything: bool = True
    """Judge the labels of both heads; else those of the output only."""
    relative: float | None = None
    """Largest mean logit difference over the mean distance of logits from their pixel's mean, of the head
    that labels; and some pixel of a real image must be clear. Scores that shrink towards zero keep their
    order: equal labels alone do not show them."""
    prototype_factor: float = 1.0
    """The prototype head's logits and labels may differ this many times more: a cosine of a short vector
    over a small temperature amplifies rounding."""
    similarity: float | None = None
    """Largest difference of ``similarity``, a cosine."""

    def named(self) -> dict[str, float]:
        """The thresholds in use."""
        flags = ("explained", "everything")
        return {k: float(v) for k, v in vars(self).items() if v is not None and k not in flags}


# Fitted on trained networks, see docs/export.md: each gate leaves about a factor of 3 above what
# sound exports show and lies below every injected fault of tests/export/proof/test_faults.py.
# "half" is for what rounds every intermediate value: torch in half precision, and engines; ONNX Runtime on a
# CPU rounds the weights of an fp16 file only.
GATES = {
    "fp32": Gates(3e-5, 1e-4, None, 0.9999, 0.99999, 1e-3, True, 0.002, similarity=1e-4),
    "fp16": Gates(1e-2, 1e-2, 8e-3, 0.998, 0.9999, 0.05, False, 0.005, prototype_factor=3.0, similarity=0.03),
    "half": Gates(3e-2, 3e-2, 2.5e-2, 0.995, 0.9999, 0.1, False, 0.005, prototype_factor=3.0, similarity=0.1),
    "int8": Gates(None, None, None, 0.95, 0.99, None, False, 0.01, everything=False, relative=0.5),
    "int8-cpu": Gates(None, None, None, 0.95, 0.99, None, False, 0.01, everything=False, relative=0.5),
    # OpenVINO in bfloat16: 8 bits of mantissa where half precision has 11
    "bf16": Gates(None, None, 0.1, 0.97, 0.998, None, False, 0.01, prototype_factor=3.0, relative=0.1),
    # a graph with fewer outputs against the file that it was cut from: the same numbers in the same runtime
    "cut": Gates(None, None, None, 0.9999, 0.99999, None, False, 0.002, everything=False),
}
