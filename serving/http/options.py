"""Reads what a client sent: multipart or raw bodies, and the parameters of a segmentation.

A body is already complete and bounded when it comes here; nothing is written to disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from protoseg.manifest import Manifest
from serving.errors import ServingError
from serving.pixels.decode import sniff

Output = Literal["mask", "json", "rle", "polygons", "overlay", "confidence", "agreement", "hf"]
OUTPUTS: tuple[str, ...] = get_args(Output)
PARAMETERS = ("output", "size", "classes", "tile", "alpha", "format", "simplify")
FILE_FIELDS = ("image", "file")
MAX_BATCH_FILES = 16

_MAX_PARTS = 32
_MAX_PART_HEAD = 4096
_MAX_FIELD = 4096
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb'(?i);\s*(name|filename)="((?:[^"\\\r\n]|\\.)*)"')
_ACCEPTED = {
    "application/json": "json",
    "application/geo+json": "polygons",
    "image/png": "mask",
    "image/jpeg": "overlay",
    "image/*": "mask",
    "*/*": "mask",
}
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")


@dataclass(frozen=True)
class Part:
    """One part of a multipart body."""

    name: str
    """Field name."""
    filename: str | None
    """File name the client gave; only ever echoed."""
    data: bytes
    """Content."""


@dataclass(frozen=True)
class Options:
    """What a client wants to know about an image."""

    output: str = "mask"
    """One of ``OUTPUTS``."""
    at_model_size: bool = False
    """Maps at the working size instead of the image's own."""
    classes: frozenset[int] | None = None
    """Only these classes; None for all."""
    tile: bool = False
    """Compute at the image's own size in overlapping tiles."""
    alpha: float = 0.5
    """Share of the class colour in an overlay, in [0, 1]."""
    geojson: bool = False
    """Polygons as a GeoJSON FeatureCollection."""
    simplify: float = 0.0
    """Pixels that a polygon may deviate."""


def _bad_multipart(why: str) -> ServingError:
    return ServingError(400, "bad_multipart", f"the multipart body cannot be read: {why}")


def _parse_part(head: bytes, data: bytes) -> Part:
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            if not value.strip().lower().startswith(b"form-data"):
                break
            found = {k.lower(): v for k, v in _DISPOSITION.findall(value)}
            if b"name" not in found:
                break
            filename = found.get(b"filename")
            return Part(
                found[b"name"].decode("utf-8", "replace"),
                None if filename is None else filename.decode("utf-8", "replace")[:255],
                data,
            )
    raise _bad_multipart("a part has no form-data name")


def parse_multipart(body: bytes, content_type: str) -> list[Part]:
    """Split a multipart/form-data body (RFC 7578).

    Args:
        body: Whole body.
        content_type: Its Content-Type, with the boundary.

    Raises:
        ServingError: 400 when it is malformed or has too many parts.
    """
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise _bad_multipart("the Content-Type has no boundary")
    delimiter = b"--" + (match[1] or match[2]).encode("latin-1", "replace")
    if body.startswith(delimiter):
        position = len(delimiter)
    else:
        start = body.find(b"\r\n" + delimiter)
        if start < 0:
            raise _bad_multipart("the boundary does not occur")
        position = start + 2 + len(delimiter)
    parts: list[Part] = []
    while True:
        if body.startswith(b"--", position):
            return parts
        line_end = body.find(b"\r\n", position, position + 64)
        if line_end < 0 or body[position:line_end].strip(b" \t"):
            raise _bad_multipart("a boundary line is damaged")
        head_end = body.find(b"\r\n\r\n", line_end, line_end + _MAX_PART_HEAD)
        if head_end < 0:
            raise _bad_multipart("a part has no end of its header")
        data_end = body.find(b"\r\n" + delimiter, head_end + 2)
        if data_end < 0:
            raise _bad_multipart("the closing boundary is missing")
        if len(parts) == _MAX_PARTS:
            raise _bad_multipart(f"it has more than {_MAX_PARTS} parts")
        # an empty part has its delimiter right behind the empty line
        data = body[head_end + 4 : data_end] if data_end >= head_end + 4 else b""
        parts.append(_parse_part(body[line_end + 2 : head_end], data))
        position = data_end + 2 + len(delimiter)


def split_body(
    body: bytes, content_type: str, max_files: int = 1
) -> tuple[list[Part], list[tuple[str, str]]]:
    """Files and form fields of a request.

    Args:
        body: Whole body.
        content_type: The request's Content-Type, may be empty.
        max_files: Files that are accepted.

    Raises:
        ServingError: 400 for no or too many files or a damaged body, 415 for another type.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raw = kind.startswith("image/") or kind in ("application/octet-stream", "")
        # curl --data-binary and wget call any body a form unless they are told otherwise
        if raw or (kind == "application/x-www-form-urlencoded" and sniff(body) is not None):
            return [Part("image", None, body)], []
        raise ServingError(
            415, "unsupported_media_type",
            f"Content-Type {kind[:80]} is not supported; send multipart/form-data with a file field "
            "image, or the bytes as image/* or application/octet-stream",
        )  # fmt: skip
    files: list[Part] = []
    fields: list[tuple[str, str]] = []
    for part in parse_multipart(body, content_type):
        if part.name in FILE_FIELDS:
            if part.filename is None and max_files == 1:
                raise ServingError(400, "missing_image", f"field {part.name} must be a file, it is text")
            files.append(part)
        elif len(part.data) > _MAX_FIELD:
            raise _bad_multipart(f"field {part.name[:40]} is longer than {_MAX_FIELD} bytes")
        else:
            fields.append((part.name, part.data.decode("utf-8", "replace")))
    if not files:
        raise ServingError(400, "missing_image", "send the image as file field image")
    if len(files) > max_files:
        raise ServingError(
            400, "too_many_files", f"{len(files)} files were sent, at most {max_files} are accepted"
        )
    return files, fields


def output_for(accept: str) -> str:
    """The output that an Accept header asks for: the known type of the highest weight, else ``mask``.

    The first among equals counts; a wildcard is a type of its own and means ``mask``.
    """
    best, chosen = 0.0, "mask"
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        if kind not in _ACCEPTED:
            continue
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if not _WEIGHT.fullmatch(weight):
            continue
        if float(weight) > best:
            best, chosen = float(weight), _ACCEPTED[kind]
    return chosen


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ServingError(
            422, "bad_parameter", f"{name} must be a number from {low:g} to {high:g}, got {text[:40]!r}"
        )
    return value


def _choice(name: str, text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        code = "bad_output" if name == "output" else "bad_parameter"
        raise ServingError(422, code, f"{name} must be one of {', '.join(choices)}, got {text[:40]!r}")
    return text


def _classes(text: str, manifest: Manifest) -> frozenset[int]:
    names = {item.name: index for index, item in enumerate(manifest.classes)}
    chosen = set()
    for word in (word.strip() for word in text.split(",")):
        if word in names:
            chosen.add(names[word])
        elif word.isascii() and word.isdigit() and len(word) < 4 and int(word) < len(names):
            chosen.add(int(word))
        else:
            raise ServingError(
                422, "bad_parameter",
                f"classes has no {word[:40]!r}; give names or ids separated by commas, "
                "GET /v1/model lists them",
            )  # fmt: skip
    return frozenset(chosen)


def parse_options(pairs: Iterable[tuple[str, str]], accept: str, manifest: Manifest) -> Options:
    """Read the parameters.

    Args:
        pairs: Names and values from query and form, the query first; the first value counts.
        accept: The Accept header, which chooses the output when no parameter does.
        manifest: Of the bundle, for class names.

    Raises:
        ServingError: 422 for an unknown name or a value out of range.
    """
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in PARAMETERS:
            raise ServingError(
                422, "bad_parameter",
                f"unknown parameter {name[:40]!r}; known: {', '.join(PARAMETERS)}",
            )  # fmt: skip
        if value != "":
            given.setdefault(name, value)
    chosen = given.get("output")
    geojson = _choice("format", given.get("format", "json"), ("json", "geojson")) == "geojson"
    if chosen is None:
        chosen = output_for(accept)
        geojson = geojson or (chosen == "polygons" and "geo+json" in accept.lower())
    tile = _choice("tile", given.get("tile", "0").lower(), ("0", "1", "false", "true"))
    return Options(
        output=_choice("output", chosen, OUTPUTS),
        at_model_size=_choice("size", given.get("size", "original"), ("original", "model")) == "model",
        classes=_classes(given["classes"], manifest) if "classes" in given else None,
        tile=tile in ("1", "true"),
        alpha=_number("alpha", given.get("alpha", "0.5"), 0, 1),
        geojson=geojson,
        simplify=_number("simplify", given.get("simplify", "0"), 0, 100),
    )
