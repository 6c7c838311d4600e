"""Accuracy studies: methods x label counts x seeds; the command is ``python -m benchmarks.accuracy``."""
