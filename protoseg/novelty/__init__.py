"""What a network was never shown: the command is ``python -m protoseg.novelty``."""
