"""Reads the body of a request: a multipart form, or the bytes of one image.

A body is already complete and bounded when it comes here; nothing is written to disk.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from serving.errors import ServingError
from serving.pixels.decode import sniff

FILE_FIELDS = ("image", "file")
MAX_BATCH_FILES = 16

_MAX_PARTS = 32
_MAX_PART_HEAD = 4096
_MAX_FIELD = 4096
# a stranger's body is no reason for a line on our standard error
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Part:
    """One part of a multipart body."""

    name: str
    """Field name."""
    filename: str | None
    """File name the client gave, None for a field of text; only ever echoed."""
    data: bytes
    """Content."""


def _bad_multipart(why: str) -> ServingError:
    return ServingError(400, "bad_multipart", f"the multipart body cannot be read: {why}")


def is_form(content_type: str) -> bool:
    """Whether a Content-Type says multipart/form-data."""
    return content_type.split(";")[0].strip().lower() == "multipart/form-data"


class _Parts:
    """Takes the events of python-multipart and bounds what they may bring."""

    def __init__(self) -> None:
        self.found: list[Part] = []
        self.ended = False

    def on_part_begin(self) -> None:
        if len(self.found) == _MAX_PARTS:
            raise _bad_multipart(f"it has more than {_MAX_PARTS} parts")
        self._names: list[bytes] = [b""]
        self._values: list[bytes] = [b""]
        self._data: list[bytes] = []
        self._head_bytes = 0

    def _head(self, texts: list[bytes], data: bytes, start: int, end: int) -> None:
        self._head_bytes += end - start
        if self._head_bytes > _MAX_PART_HEAD:
            raise _bad_multipart(f"the header of a part is longer than {_MAX_PART_HEAD} bytes")
        texts[-1] += data[start:end]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._head(self._names, data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._head(self._values, data, start, end)

    def on_header_end(self) -> None:
        self._names.append(b"")
        self._values.append(b"")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        # the standard library knows every form of a parameter: quoted or not, and name*=utf-8''...
        head = Message()
        for name, value in zip(self._names, self._values, strict=True):
            if name.strip().lower() == b"content-disposition":
                head["content-disposition"] = value.decode("utf-8", "replace").strip()
        given = {
            key: head.get_param(key, header="content-disposition")
            for key in ("form-data", "name", "filename")
        }
        if given["form-data"] is None or given["name"] is None:
            raise _bad_multipart("a part has no form-data name")
        filename = given["filename"]
        self.found.append(
            Part(
                collapse_rfc2231_value(given["name"]),
                None if filename is None else collapse_rfc2231_value(filename)[:255],
                self._data[0] if len(self._data) == 1 else b"".join(self._data),
            )
        )

    def on_end(self) -> None:
        self.ended = True


def parse_multipart(body: bytes, content_type: str) -> list[Part]:
    """Split a multipart/form-data body (RFC 7578).

    Args:
        body: Whole body.
        content_type: Its Content-Type, with the boundary.

    Raises:
        ServingError: 400 when it is malformed or has too many parts.
    """
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary()
    if not boundary:
        raise _bad_multipart("the Content-Type has no boundary")
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if start == 1:
        raise _bad_multipart("the boundary does not occur")
    # RFC 2046 allows a preamble and blanks behind a boundary; python-multipart wants the first one bare
    after = body[start + len(delimiter) : start + len(delimiter) + 64]
    blanks = len(after) - len(after.lstrip(b" \t"))
    if start or blanks:
        body = delimiter + body[start + len(delimiter) + blanks :]
    parts = _Parts()
    events = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        MultipartParser(delimiter[2:], events).write(body)  # type: ignore[arg-type]
    except FormParserError as error:
        raise _bad_multipart(str(error)[:200]) from None
    if not parts.ended:
        raise _bad_multipart("the closing boundary is missing")
    return parts.found


def read_body(body: bytes, content_type: str, max_files: int = 1) -> tuple[list[Part], list[tuple[str, str]]]:
    """Files and form fields of a request.

    Args:
        body: Whole body.
        content_type: The request's Content-Type, may be empty.
        max_files: Files that are accepted.

    Raises:
        ServingError: 400 for no or too many files or a damaged body, 415 for another type.
    """
    if not is_form(content_type):
        kind = content_type.split(";")[0].strip().lower()
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
        name = part.name[:40]
        if part.name in FILE_FIELDS:
            if part.filename is None and max_files == 1:
                raise ServingError(400, "missing_image", f"field {name} must be a file, it is text")
            files.append(part)
        elif part.filename is not None:
            raise ServingError(
                400, "missing_image", f"send the image as file field image; the file came as field {name}"
            )
        elif len(part.data) > _MAX_FIELD:
            raise _bad_multipart(f"field {name} is longer than {_MAX_FIELD} bytes")
        else:
            fields.append((part.name, part.data.decode("utf-8", "replace")))
    if not files:
        raise ServingError(400, "missing_image", "send the image as file field image")
    if len(files) > max_files:
        raise ServingError(
            400, "too_many_files", f"{len(files)} files were sent, at most {max_files} are accepted"
        )
    return files, fields
