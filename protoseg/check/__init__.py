"""The doctor: looks at data before training (``python -m protoseg.check``)."""
