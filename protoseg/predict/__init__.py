"""Masks for images (``python -m protoseg.predict``)."""
