"""One module for each format: ``TITLE``, ``fits(tree)`` and ``read(tree, choices, notes)``."""
