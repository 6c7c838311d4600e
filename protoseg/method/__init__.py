"""The method: one training step, its losses, pseudo-labels, mixing, teacher and prototypes' start."""
