"""Log lines of the service beside the access log: one plain line on standard error for each event."""

from __future__ import annotations

import logging


def configure_log() -> None:
    """Show what this package has to say; BentoML only shows its own loggers."""
    logger = logging.getLogger("serving")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] [%(process)d] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
