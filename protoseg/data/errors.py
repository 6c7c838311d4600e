"""The one error that data reading raises for things the user can put right."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the text names the file, what is wrong with it and what to do."""
