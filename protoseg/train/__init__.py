"""The training run (``accelerate launch --quiet -m protoseg.train``)."""
