"""Are suggested images worth more than random ones: the command is ``python -m benchmarks.suggest_study``."""
