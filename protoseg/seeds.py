"""Randomness as a function of seed, stream and position, so that a resumed run repeats it. Numpy only."""

from __future__ import annotations

import numpy as np

STREAMS = {
    "labeled": 1, "unlabeled": 2, "steps": 3, "global": 4, "labeled order": 101, "unlabeled order": 102,
    "rare classes": 103, "held out": 104,
}  # fmt: skip
"""Independent sequences of a run: views of either list, network noise, batch-wide draws, image orders."""


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Generator of the run's ``seed``, a stream of ``STREAMS`` and a position."""
    return np.random.default_rng([seed, STREAMS[stream], *key])
