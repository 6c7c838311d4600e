"""Tells how the lines of a list are divided: by spaces, tabs, commas, with quotes, with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protoseg.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_IMAGE_HEADS = frozenset({
    "image", "images", "img", "file", "filename", "file_name", "path", "image_path", "image_file", "filepath",
    "image_name", "image_filename", "input", "image_id", "img_path", "img_name",
})  # fmt: skip
_MASK_HEADS = frozenset({
    "mask", "masks", "label", "labels", "annotation", "annotations", "mask_path", "label_path", "mask_file",
    "annotation_path", "segmentation", "target", "gt", "ground_truth", "mask_name", "mask_filename",
})  # fmt: skip
_PART_HEADS = frozenset({"split", "subset", "set", "fold", "phase", "partition"})
_QUOTED = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^\s"']\S*))(?:\s+|$)""")


@dataclass(frozen=True)
class Header:
    """What the first line of a table says about the others."""

    separator: str
    """A blank for the usual pairs."""
    image: int
    """Column of the image."""
    mask: int | None
    """Column of the mask."""
    unread: tuple[str, ...] = ()
    """Names of other columns."""

    def pick(self, line: str) -> tuple[str, str | None]:
        """Image and mask of a line; ``-`` for an empty field, None without a column of masks.

        Raises:
            DataError: If the line has too few columns, or none where the image is named.
        """
        fields = split_fields(line, self.separator)
        if len(fields) <= self.image or not fields[self.image]:
            raise DataError(
                f"{line!r} has nothing in column {self.image + 1}, where the header has the image"
            )
        if self.mask is None:
            return fields[self.image], None
        mask = fields[self.mask] if self.mask < len(fields) else ""
        return fields[self.image], mask or "-"


def split_fields(line: str, separator: str) -> list[str]:
    """Fields without quotes and blanks around them."""
    row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [_unquote(field.strip()) for field in row]


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def read_header(line: str) -> Header | None:
    """The header that a line is, if it is one (``image,mask``; the caller sees that it names no file).

    Raises:
        DataError: If a column divides the images into parts, which one list cannot hold.
    """
    words = line.lower().split()
    if len(words) == 2 and words[0] in _IMAGE_HEADS and words[1] in _MASK_HEADS:
        return Header(" ", 0, 1)
    for separator in SEPARATORS:
        names = [name.lower().replace(" ", "_") for name in split_fields(line, separator)]
        found = _columns(names, separator)
        if found is not None and (len(names) > 1 or separator == ","):
            return found
    return None


def _columns(names: Sequence[str], separator: str) -> Header | None:
    image = next((i for i, name in enumerate(names) if name in _IMAGE_HEADS), None)
    if image is None:
        return None
    mask = next((i for i, name in enumerate(names) if name in _MASK_HEADS), None)
    parts = [name for name in names if name in _PART_HEADS]
    if parts:
        raise DataError(
            f"column {parts[0]!r} divides the images: write a list for each part and name them in "
            "data.labeled, data.unlabeled and data.val"
        )
    unread = tuple(name for i, name in enumerate(names) if name and i not in (image, mask))
    return Header(separator, image, mask, unread)


def other_readings(line: str) -> Iterator[tuple[str, list[str]]]:
    """Ways to divide a line beside spaces and tabs, each with its name: quotes, commas, semicolons."""
    if '"' in line or "'" in line:
        fields = _quoted_fields(line)
        if fields is not None:
            yield "quoted", fields
    for separator in ",;":
        if separator in line:
            yield SEPARATORS[separator], [f for f in split_fields(line, separator) if f]


def _quoted_fields(line: str) -> list[str] | None:
    fields, at = [], 0
    while at < len(line):
        match = _QUOTED.match(line, at)
        if match is None:
            return None
        fields.append(next(part for part in match.groups() if part is not None))
        at = match.end()
    return fields
