"""The doctor's contact sheet: images beside their masks, with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from protoseg.data.images import save_whole
from protoseg.data.lists import Split
from protoseg.data.sources import Source
from protoseg.draw.colours import as_rgb, overlay_picture
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

COLUMNS = 4
_WANTED: dict[Split, int] = {"labeled": 8, "val": 4, "unlabeled": 8}


def draw_contact_sheet(
    path: Path,
    sources: Mapping[Split, Source],
    classes: Sequence[ClassInfo],
    shares: Mapping[str, Mapping[str, float | None]],
) -> int:
    """Write a PNG of images with mask overlays and a legend of the classes.

    Args:
        path: PNG file; its folder is made.
        sources: Splits to draw; unreadable images are left out.
        classes: Names and colours; other labels are hatched.
        shares: Pixel shares by class name and split, for the legend.

    Returns:
        Images drawn; with none no file is written.

    Raises:
        DataError: If the file cannot be written.
    """
    tiles: list[Tile] = []
    for split, wanted in _WANTED.items():
        length = len(sources[split]) if split in sources else 0
        count = min(length, wanted)
        for index in (i * length // count for i in range(count)):
            try:
                tiles.append(_tile(split, sources[split], index, classes))
            except DataError:
                continue
    if not tiles:
        return 0
    named = [
        ClassInfo(name=f"{index} {item.name}{_percent(shares.get(item.name, {}))}", color=item.color)
        for index, item in enumerate(classes)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    save_whole(path, draw_sheet(tiles, named, columns=COLUMNS))
    return len(tiles)


def _tile(split: Split, source: Source, index: int, classes: Sequence[ClassInfo]) -> Tile:
    image, found = source.image(index), source.labels(index)
    pictures = [small(as_rgb(image))]
    if found is not None and found.ids.shape == image.shape[:2]:
        pictures.append(small(overlay_picture(image, found.ids, [item.color for item in classes])))
    return Tile(pictures, f"{split}: {Path(source.name(index)).name}")


def _percent(shares: Mapping[str, float | None]) -> str:
    share = shares.get("labeled")
    return "" if share is None else f" {100 * share:.2f}%"
