"""Reads the body of a request: a multipart form, or the bytes of one image.

A body is already complete and bounded when it comes here; nothing is written to disk.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from email.parser import HeaderParser
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


def _part(head: bytes, data: bytes) -> Part:
    if len(head) > _MAX_PART_HEAD:
        raise _bad_multipart(f"the header of a part is longer than {_MAX_PART_HEAD} bytes")
    # the standard library reads every form of a parameter: quoted or not, and filename*=utf-8''...
    message = HeaderParser().parsestr(head.decode("utf-8", "replace"))
    kind, name, filename = (
        message.get_param(key, header="content-disposition") for key in ("form-data", "name", "filename")
    )
    if kind is None or name is None:
        raise _bad_multipart("a part has no form-data name")
    called = None if filename is None else collapse_rfc2231_value(filename)[:255]
    return Part(collapse_rfc2231_value(name), called, data)


class _Parts:
    """Takes the events of python-multipart for a body that it gets in one piece."""

    def __init__(self, body: bytes) -> None:
        self.found: list[Part] = []
        self.ended = False
        self._body = body

    def on_part_begin(self) -> None:
        self._head = self._data = (0, 0)

    def on_header_field(self, _: bytes, start: int, end: int) -> None:
        self._head = (self._head[0] or start, end)

    on_header_value = on_header_field

    def on_part_data(self, _: bytes, start: int, end: int) -> None:
        self._data = (self._data[0] or start, end)

    def on_part_end(self) -> None:
        self.found.append(_part(self._body[slice(*self._head)], self._body[slice(*self._data)]))

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
    boundary = HeaderParser().parsestr(f"Content-Type: {content_type}").get_boundary()
    if not boundary:
        raise _bad_multipart("the Content-Type has no boundary")
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if start == 1:
        raise _bad_multipart("the boundary does not occur")
    # counted before they are parsed, which takes longer for lines that only begin like a boundary
    if body.count(b"\r\n" + delimiter) > _MAX_PARTS + 1:
        raise _bad_multipart(f"it has more than {_MAX_PARTS} parts")
    # RFC 2046 allows a preamble and blanks behind a boundary; python-multipart wants the first one bare
    after = body[start + len(delimiter) : start + len(delimiter) + 64]
    blanks = len(after) - len(after.lstrip(b" \t"))
    if start or blanks:
        body = delimiter + body[start + len(delimiter) + blanks :]
    parts = _Parts(body)
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
