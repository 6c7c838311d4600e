"""Predictions as drafts for annotation tools: the way back is ``protoseg.convert``."""
