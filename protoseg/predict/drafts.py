"""Drafts for annotation tools from results that are on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.annotate.draft import Draft, Keep, names_of
from protoseg.data.pictures import DECODE_ERRORS
from protoseg.errors import DataError, UserError
from protoseg.predict.table import ResultTable, Row


@dataclass
class Drafted:
    """Images of ``predictions.csv`` that drafts can be made of: those of one run and step, from all calls."""

    out: Path
    """Folder of results."""
    rows: dict[Path, Row] = field(default_factory=dict)
    """By the image's file."""
    left_out: list[str] = field(default_factory=list)
    """What else the table holds, a line for each reason."""

    @classmethod
    def of(cls, out: Path, run: str, step: int | str) -> Drafted:
        """Read the table.

        Raises:
            DataError: If it cannot be read.
        """
        found, others, gone = cls(out), 0, 0
        for row in ResultTable(out).rows.values():
            if not row["masks"]:
                continue
            image = Path(row["input"])
            if (row["run"], row["step"]) != (run, str(step)):
                others += 1
            elif not image.is_file() or not (out / row["masks"]).is_file():
                gone += 1
            else:
                found.rows[image] = row
        if others:
            found.left_out.append(f"{others} results of other runs or steps are in {out}: no drafts")
        if gone:
            found.left_out.append(
                f"{gone} images of earlier calls, or their masks, are gone; no drafts of them"
            )
        return found

    def drafts(self, keep: Keep) -> Iterator[Draft]:
        """The drafts, one at a time.

        Raises:
            UserError: If regions are to be dropped by confidence and a result has none.
            DataError: If a result cannot be read.
        """
        names = names_of(list(self.rows))
        for image, row in self.rows.items():
            labels = _read(self.out / row["masks"])
            confidence = None
            if row["confidence"]:
                confidence = (_read(self.out / row["confidence"]) / 255).astype(np.float32)
            elif keep.min_confidence:
                raise UserError(
                    f"--min-confidence needs the confidence of {image}, which an earlier call did not write; "
                    "predict it again without --no-confidence"
                )
            yield Draft(image, names[image], keep.apply(labels, confidence), confidence)


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.array(picture, np.uint8)
    except DECODE_ERRORS as error:
        raise DataError(f"{path} cannot be read ({error}); predict its image again") from error
