"""Masks of very many images, on the machines of a Ray cluster."""
