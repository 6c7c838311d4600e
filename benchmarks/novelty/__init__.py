"""Which score finds what a network was never shown; the command is ``python -m benchmarks.novelty``."""
