"""The error of this package, under its former address."""

from protoseg.errors import ExportError

__all__ = ["ExportError"]
