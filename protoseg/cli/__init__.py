"""The command ``protoseg``: one name for every command, and the start of a training."""
