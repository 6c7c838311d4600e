"""What is written about why an image was segmented so: a record, a map and a picture. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.images import save_whole, write_text
from protoseg.errors import DataError
from protoseg.explain.reasons import Grounds, Reasons, prototype_records
from protoseg.explain.sheet import Explained, reason_sheet
from protoseg.manifest import ClassInfo


def image_record(labels: NDArray[np.uint8], grounds: Grounds, classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Why, by region: ``regions``, ``regions_left_out``, and the ``prototypes`` that they name.

    Args:
        labels: (H, W) predicted class ids.
        grounds: What the image is explained by.
        classes: Names by id.
    """
    names = [item.name for item in classes]
    told = grounds.regions or Reasons(grounds.nearest, labels, names, grounds.num_prototypes).regions()
    regions, left_out = told
    indices = [item["prototype"] for item in regions]
    named = prototype_records(dict(grounds.prototypes), names, indices)
    return {"regions": regions, "regions_left_out": left_out, "prototypes": named}


def write_reasons(
    base: Path,
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    grounds: Grounds,
    classes: Sequence[ClassInfo],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write ``BASE.json``, ``BASE.png`` (nearest prototypes, 16 bits) and ``BASE.jpg``, each whole.

    Args:
        base: Path without suffix; its folder is made.
        image: (H, W, C_in) uint8 at its own size.
        labels: (H, W) predicted class ids.
        grounds: What the image is explained by.
        classes: Names and colours by id.
        about: More for the record: ``image``, what it is called, and ``run``, ``step`` and ``head``.

    Returns:
        The files.

    Raises:
        DataError: If they cannot be written.
    """
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{base.parent} cannot be made: {error}") from error
    said = image_record(labels, grounds, classes)
    height, width = labels.shape
    record = {"image": about["image"], "height": height, "width": width, **about, **said}
    sheet = reason_sheet(Explained(base.name, image, labels, grounds, classes), said["regions"])
    cells = np.ix_(*grounds.nearest.cells(labels.shape))
    files = [base.with_name(base.name + suffix) for suffix in (".json", ".png", ".jpg")]
    save_whole(files[1], Image.fromarray(grounds.nearest.prototype[cells].astype(np.uint16)))
    save_whole(files[2], sheet)
    write_text(files[0], json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return files
