"""What torch left in the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.proof.reference import TorchRunner
from export.proof.samples import sample_batches, upsample
from protoseg.checkpoint import Checkpoint
from protoseg.manifest import read_manifest


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("size", [(64, 96), (33, 41), (3, 5)])
def test_upsampling_equals_torch(stride: int, size: tuple[int, int]) -> None:
    padded = [-(-s // 32) * 32 for s in size]
    low = torch.randn(2, 3, padded[0] // stride, padded[1] // stride)
    full = F.interpolate(low, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    np.testing.assert_allclose(upsample(low.numpy(), *size, 32), full.numpy(), atol=1e-5)


def test_samples_rebuild_what_torch_gave(checkpoint: Checkpoint, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert len(manifest.samples) == 3
    for _, batch, outputs in sample_batches(bundle, manifest):
        expected = TorchRunner(checkpoint.segmenter, "linear")(batch)
        # of the prototypes' cosines samples keep what pooling leaves of them
        assert set(outputs) == set(expected) - {"similarity"}
        np.testing.assert_array_equal(outputs["labels"], expected["labels"])
        for name in ("confidence", "agreement", "linear_logits", "prototype_logits"):
            np.testing.assert_allclose(outputs[name], expected[name], atol=2e-5, err_msg=name)
