"""COCO: one JSON with images, categories and run lengths, exact to the pixel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protoseg.annotate.draft import NOTHING, Draft
from protoseg.data.regions import rle_by_class
from protoseg.files import write_whole
from protoseg.manifest import ClassInfo

TITLE = "COCO JSON with run lengths: CVAT, FiftyOne, Roboflow and others"
PLACE = "coco.json"


def write(target: Path, drafts: Iterable[Draft], classes: Sequence[ClassInfo]) -> int:
    """Write the file, whole or not at all; an annotation is all that an image holds of a class.

    Run lengths are of the uncompressed form, which ``pycocotools`` takes as well. Category ids are class ids
    plus one: tools take 0 for no category.

    Returns:
        How many images it holds.
    """
    images: list[dict[str, Any]] = []
    categories = [
        {"id": index + 1, "name": item.name, "supercategory": ""} for index, item in enumerate(classes)
    ]

    def fill(beside: Path) -> None:
        number = 0
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            # run lengths of a large set do not fit in memory, so the list of images comes last
            file.write(f'{{"categories":{_json(categories)},\n"annotations":[')
            for draft in drafts:
                height, width = draft.labels.shape
                image = {"id": len(images) + 1, "file_name": draft.name, "width": width, "height": height}
                images.append(image)
                for record in _annotations(draft):
                    number += 1
                    ids = {"id": number, "image_id": image["id"]}
                    file.write(("\n" if number == 1 else ",\n") + _json(ids | record))
            file.write(f'],\n"images":{_json(images)}}}\n')

    write_whole(target, fill)
    return len(images)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _annotations(draft: Draft) -> Iterator[dict[str, Any]]:
    for index, counts in rle_by_class(draft.labels).items():
        if index == NOTHING:
            continue
        mask = draft.labels == index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        score = draft.mean_confidence(index)
        yield {
            "category_id": index + 1,
            "iscrowd": 0,
            "area": int(mask.sum()),
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "segmentation": {"size": list(mask.shape), "counts": counts},
            **({} if score is None else {"score": round(score, 4)}),
        }
