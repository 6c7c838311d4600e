"""Which score finds wrong pixels; the command is ``python -m benchmarks.trust``."""
