"""Reads text files as people have them: UTF-8 with or without a mark, and what Windows tools write."""

from __future__ import annotations

import codecs
import contextlib
import json
import shlex
from pathlib import Path

from protoseg.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def read_lines(path: Path, *, strip: bool = True) -> list[str]:
    """Lines of a text, see ``read_text``; line n is at n - 1.

    Args:
        path: The file.
        strip: Take blanks off both ends of each line.

    Raises:
        DataError: As ``read_text``.
    """
    lines = read_text(path).split("\n")
    return [line.strip() for line in lines] if strip else lines


def read_text(path: Path, what: str = "") -> str:
    """A text with Unix line ends.

    Args:
        path: Text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark or without (ASCII letters tell).
        what: What to call it in a message, as ``list``.

    Raises:
        DataError: If it cannot be read, or is no text; names the line where there is one.
    """
    name = f"{what} {path}".strip()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}") from error
    encoding = next((code for mark, code in _MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in data:
            raise DataError(f"{name} cannot be read: it is not a text file") from error
        if encoding != "utf-8":
            raise DataError(f"{name} cannot be read: {error}; save it as UTF-8") from error
        number = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} cannot be read: line {number} is not UTF-8 (byte 0x{data[error.start]:02x}); save it as "
            "UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{name} cannot be read: it is not a text file")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # a mark inside is what joining files leaves
    return text.replace("\ufeff", "")


def _unmarked(data: bytes) -> str:
    """UTF-16 without a mark has a zero at every other place of its ASCII letters."""
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        high = data[first:2000:2]
        if len(data) >= 4 and len(data) % 2 == 0 and high.count(0) > len(high) // 2:
            return encoding
    return "utf-8"


def refuse_annotations(path: Path, text: str, setting: str) -> None:
    """Refuse what an annotation tool wrote instead of masks.

    Raises:
        DataError: If the text is JSON or XML; names the command that makes masks of it.
    """
    first = text.lstrip().partition("\n")[0].strip()
    kind = "XML" if first.startswith("<") else ""
    if first[:1] in ("{", "["):
        kind = "JSON" if path.suffix.lower() in (".json", ".jsonl", ".ndjson") else ""
        for part in (text, first):
            with contextlib.suppress(ValueError):
                json.loads(part)
                kind = "JSON"
    if kind:
        raise DataError(f"{setting}: {path} is {kind}, not a list of images; {masks_needed(path)}")


def masks_needed(source: Path, images: Path | None = None) -> str:
    """What to do with annotations that are no masks; ``images``: where their images are, if elsewhere."""
    where = "" if images is None or images == source else f" --images {shlex.quote(str(images))}"
    return (
        "a training needs masks: where it holds annotations, make masks and lists of them with: "
        f"python -m protoseg.convert {shlex.quote(str(source))}{where} -o DIR"
    )
