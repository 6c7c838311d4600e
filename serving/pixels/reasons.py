"""What the service says about why pixels have their class: JSON records from maps and atlas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protoseg.explain.atlas import Atlas
from protoseg.explain.reasons import Nearest, Reasons, prototype_records
from serving.errors import ServingError
from serving.pixels.maps import Labels


def strip_path(index: int) -> str:
    """Where the thumbnails of a prototype are served."""
    return f"/v1/prototypes/{index}"


def named_prototypes(atlas: Atlas, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Prototypes with the path of their thumbnails and how these lie in the strip."""
    records = prototype_records(atlas.by_index(), atlas.classes, indices)
    return [
        {**record, "thumbnails": {"path": strip_path(record["index"]), "side": atlas.side}}
        for record in records
    ]


def explain(
    labels: Labels,
    nearest: Nearest,
    atlas: Atlas,
    points: Sequence[tuple[int, int]],
    classes: frozenset[int] | None,
    *,
    grid: bool,
) -> dict[str, Any]:
    """Why: of the points, or else of the regions; ``grid`` adds everything by cell.

    Args:
        labels: (H, W) class ids.
        nearest: The nearest prototypes of the image.
        atlas: Training patches.
        classes: Classes whose regions are told; None for all.
        points: Pixels as (x, y), at the size of the maps.
        grid: Whether to add it.

    Raises:
        ServingError: 422 for a point outside.
    """
    height, width = labels.shape
    for x, y in points:
        if x >= width or y >= height:
            raise ServingError(
                422,
                "bad_parameter",
                f"there is no pixel x={x}, y={y}; the map has {width}x{height} (width x height)",
            )
    reasons = Reasons(nearest, labels, atlas.classes, atlas.num_prototypes)
    value: dict[str, Any] = {}
    if points:
        value["points"] = said = [reasons.at(x, y) for x, y in points]
    else:
        said, left_out = reasons.regions(classes=classes)
        value |= {"regions": said, "regions_left_out": left_out}
    indices = [item["prototype"] for item in said]
    if grid:
        value["grid"] = reasons.grid()
        indices = [item.index for item in atlas.prototypes]
    return {**value, "prototypes": named_prototypes(atlas, indices)}
