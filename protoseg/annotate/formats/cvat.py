"""CVAT's "Segmentation mask 1.1": a zip with labelmap.txt, coloured masks and a list."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from protoseg.annotate.draft import BACKGROUND_NAMES, NOTHING, Draft
from protoseg.data.palette import Color, default_palette
from protoseg.errors import UserError
from protoseg.files import write_whole
from protoseg.manifest import ClassInfo

TITLE = "CVAT, zip of Segmentation mask 1.1"
PLACE = "cvat.zip"
BACKGROUND = "background"


def write(target: Path, drafts: Iterable[Draft], classes: Sequence[ClassInfo]) -> int:
    """Write the zip, whole or not at all. Pixels without a proposal are the background, black.

    Returns:
        How many images it holds.

    Raises:
        UserError: If there are more classes than distinct colours.
    """
    colors = mask_colors(classes)
    names: dict[str, str] = {}

    def fill(beside: Path) -> None:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in colors.items()]
            archive.writestr("labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
            for draft in drafts:
                stem = str(PurePosixPath(draft.name).with_suffix(""))
                if stem in names:
                    sys.stderr.write(
                        f"skipped: {draft.path}: CVAT cannot tell it from {names[stem]}, whose name is the "
                        "same but for its ending\n"
                    )
                    continue
                names[stem] = draft.name
                archive.writestr(f"SegmentationClass/{stem}.png", _png(draft, classes, colors))
            listed = "".join(f"{stem}\n" for stem in names)
            archive.writestr("ImageSets/Segmentation/default.txt", listed)

    write_whole(target, fill)
    return len(names)


def mask_colors(classes: Sequence[ClassInfo]) -> dict[str, Color]:
    """Colours by name, the black background first.

    Raises:
        UserError: If they cannot be told apart.
    """
    colors: dict[str, Color] = {BACKGROUND: (0, 0, 0)}
    for item in classes:
        if item.name.casefold() not in BACKGROUND_NAMES:
            colors[item.name] = item.color
    if len(set(colors.values())) < len(colors):
        # black is the background's in this format, and colours are all that a mask holds
        named = default_palette(list(colors), {BACKGROUND: (0, 0, 0)})
        colors = dict(zip(colors, named, strict=True))
    if len(set(colors.values())) < len(colors):
        raise UserError(f"{len(colors)} classes have no distinct colours; use --format coco")
    return colors


def _png(draft: Draft, classes: Sequence[ClassInfo], colors: dict[str, Color]) -> bytes:
    palette = np.zeros((256, 3), np.uint8)
    for index, item in enumerate(classes):
        palette[index] = colors.get(item.name, colors[BACKGROUND])
    palette[NOTHING] = colors[BACKGROUND]
    buffer = io.BytesIO()
    Image.fromarray(palette[draft.labels]).save(buffer, "PNG")
    return buffer.getvalue()
