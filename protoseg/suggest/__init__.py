"""Which images to label next (``python -m protoseg.suggest``)."""
