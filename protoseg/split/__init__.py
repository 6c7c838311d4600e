"""Divides a labelled set into lists (``python -m protoseg.split``)."""
