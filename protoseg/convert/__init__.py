"""Turns the exports of annotation tools into masks and lists (``python -m protoseg.convert``)."""
