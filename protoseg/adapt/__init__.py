"""Classes added, mended, merged, removed and renamed in a trained network, without a training step."""
