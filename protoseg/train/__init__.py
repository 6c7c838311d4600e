"""The training run (``accelerate launch -m protoseg.train``)."""
