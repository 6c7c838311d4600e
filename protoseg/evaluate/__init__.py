"""Metrics and the measuring of checkpoints (``python -m protoseg.evaluate``)."""
