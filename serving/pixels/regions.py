"""Regions of a label map within what an answer may hold."""

from __future__ import annotations

from protoseg.data import regions
from protoseg.data.regions import Polygon, TooManyRegionsError
from serving.errors import ServingError
from serving.pixels.maps import Labels

# JSON of more runs or points would cost more memory than the image that was sent
MAX_RUNS = 2_000_000


def rle_by_class(labels: Labels) -> dict[int, list[int]]:
    """As ``protoseg.data.regions.rle_by_class``.

    Raises:
        ServingError: 413 when there are more than two million runs.
    """
    try:
        return regions.rle_by_class(labels, MAX_RUNS)
    except TooManyRegionsError as error:
        raise _too_large(error) from None


def polygons_by_class(labels: Labels, simplify: float) -> dict[int, list[Polygon]]:
    """As ``protoseg.data.regions.polygons_by_class``.

    Raises:
        ServingError: 413 when there are more than two million points.
    """
    try:
        return regions.polygons_by_class(labels, simplify, MAX_RUNS)
    except TooManyRegionsError as error:
        raise _too_large(error) from None


def _too_large(error: TooManyRegionsError) -> ServingError:
    return ServingError(413, "result_too_large", f"{error}; ask for output=mask")
