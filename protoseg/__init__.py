"""Semi-supervised semantic segmentation with prototype-based consistency regularisation."""

__version__ = "0.1.0"
