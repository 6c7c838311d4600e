from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ServingError
from serving.http.body import parse_multipart, read_body


def encode(files: list[tuple[str, Any]], data: dict[str, str] | None = None) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", files=files, data=data)
    return request.read(), request.headers["content-type"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    st.text(st.characters(codec="ascii"), max_size=20),
)
def test_reads_what_httpx_writes(contents: list[bytes], text: str) -> None:
    body, content_type = encode(
        [("image", (f"{i}.png", c)) for i, c in enumerate(contents)], {"output": text}
    )
    parts = parse_multipart(body, content_type)
    assert [p.data for p in parts if p.name == "image"] == contents
    assert [p.data.decode() for p in parts if p.name == "output"] == [text]
    assert [p.filename for p in parts if p.name == "image"] == [f"{i}.png" for i in range(len(contents))]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_damaged_bodies_only_raise_serving_errors(data: bytes, place: int, value: int) -> None:
    body, content_type = encode([("image", ("a", data))])
    damaged = bytearray(body)
    damaged[place % len(body)] = value
    statuses = set()
    for candidate in (bytes(damaged), body[: place % len(body)], data):
        try:
            parse_multipart(candidate, content_type)
        except ServingError as error:
            statuses.add(error.status)
    assert statuses <= {400}


@pytest.mark.parametrize(
    ("body", "content_type", "says"),
    [
        (b"x", "multipart/form-data", "no boundary"),
        (b"x", "multipart/form-data; boundary=abc", "does not occur"),
        (b"--abc", "multipart/form-data; boundary=abc", "closing boundary"),
        (b"--abcd\r\n\r\nx\r\n--abc--", "multipart/form-data; boundary=abc", "boundary"),
        (b"--abc\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nx",
         "multipart/form-data; boundary=abc", "closing boundary"),
        (b"--abc\r\nX: y\r\n\r\nx\r\n--abc--", "multipart/form-data; boundary=abc", "form-data name"),
        (b"--abc\r\nContent-Disposition: form-data; name=\"a\"\r\n", "multipart/form-data; boundary=abc",
         "closing boundary"),
        (b"--abc\r\nContent-Disposition: form-data; name=\"" + b"a" * 5000 + b"\"\r\n\r\nx\r\n--abc--",
         "multipart/form-data; boundary=abc", "."),
    ],
)  # fmt: skip
def test_multipart_errors(body: bytes, content_type: str, says: str) -> None:
    with pytest.raises(ServingError, match=says) as caught:
        parse_multipart(body, content_type)
    assert caught.value.code == "bad_multipart"


def test_too_many_parts() -> None:
    body, content_type = encode([(f"f{i}", ("a", b"")) for i in range(40)])
    with pytest.raises(ServingError, match="more than 32 parts"):
        parse_multipart(body, content_type)


def test_raw_bodies_and_both_field_names() -> None:
    for kind in ("image/png", "application/octet-stream", "", "IMAGE/JPEG; q=1"):
        files, fields = read_body(b"bytes", kind)
        assert (files[0].data, fields) == (b"bytes", [])
    for name in ("image", "file"):
        files, fields = read_body(*encode([(name, ("a.png", b"bytes"))], {"output": "json"}))
        assert (files[0].data, fields) == (b"bytes", [("output", "json")])


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([("picture", ("a.png", b"x"))], "missing_image"),
        ([("image", (None, b"http://169.254.169.254/"))], "missing_image"),
        ([("image", ("a", b"x")), ("image", ("b", b"y"))], "too_many_files"),
    ],
)
def test_wrong_fields(files: list[tuple[str, Any]], code: str) -> None:
    with pytest.raises(ServingError) as caught:
        read_body(*encode(files))
    assert (caught.value.status, caught.value.code) == (400, code)


def test_json_bodies_are_refused() -> None:
    with pytest.raises(ServingError) as caught:
        read_body(b'{"image": "http://example.org/a.png"}', "application/json")
    assert caught.value.status == 415


def test_images_that_a_tool_calls_a_form() -> None:
    kind = "application/x-www-form-urlencoded"
    png = b"\x89PNG\r\n\x1a\n and so on"
    files, fields = read_body(png, kind)
    assert (files[0].data, fields) == (png, [])
    with pytest.raises(ServingError) as caught:
        read_body(b"image=http://127.0.0.1/", kind)
    assert caught.value.status == 415


BOUNDARY = "multipart/form-data; boundary=abc"


def form(head: str, content: bytes = b"bytes") -> bytes:
    return f"--abc\r\n{head}\r\n\r\n".encode() + content + b"\r\n--abc--\r\n"


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ('Content-Disposition: form-data; name="image"; filename="a.png"', "a.png"),
        ("Content-Disposition: form-data; name=image; filename=a.png", "a.png"),
        ("content-disposition:form-data;name=image;filename=a.png", "a.png"),
        ('CONTENT-DISPOSITION: Form-Data; Name=image; FileName="a;b=c.png"', "a;b=c.png"),
        ("Content-Disposition: form-data; filename*=utf-8''%D1%84.png; name=\"image\"", "\u0444.png"),
        ("Content-Disposition: form-data; name=\"image\"; filename*=UTF-8'ru'%D1%84.png", "\u0444.png"),
        ('Content-Disposition: form-data; name="image"; filename="\u0444.png"', "\u0444.png"),
        ('Content-Disposition: form-data; name="image"; filename="a\\"b.png"', 'a"b.png'),
        ('Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename=""', ""),
    ],
)
def test_every_form_of_a_name_is_read(head: str, filename: str) -> None:
    (part,), fields = read_body(form(head), BOUNDARY)
    assert (part.filename, part.data, fields) == (filename, b"bytes", [])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"to whom it may concern\r\n{}", BOUNDARY),
        (b"\r\n{}", BOUNDARY),
        (b"{}and an epilogue", BOUNDARY),
        (b"{}", "Multipart/Form-Data; charset=utf-8; Boundary=abc"),
        (b"{}", 'multipart/form-data; boundary="abc"'),
    ],
)
def test_every_form_of_a_body_is_read(body: bytes, content_type: str) -> None:
    plain = form('Content-Disposition: form-data; name="image"; filename="a"', b"\r\n--ab\r\n\r\n")
    for whole in (plain, plain.replace(b"--abc\r\n", b"--abc \t\r\n")):
        (part,), _ = read_body(body.replace(b"{}", whole), content_type)
        assert part.data == b"\r\n--ab\r\n\r\n"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_under_another_name_is_told_the_right_one(size: int) -> None:
    with pytest.raises(ServingError, match="as file field image; the file came as field photo") as caught:
        read_body(*encode([("photo", ("scene.png", bytes(size)))]))
    assert (caught.value.status, caught.value.code) == (400, "missing_image")


def test_long_fields_are_refused() -> None:
    files = [("image", ("a", b"x"))]
    with pytest.raises(ServingError, match="longer than 4096 bytes"):
        read_body(*encode(files, {"output": "x" * 5000}))


def test_damaged_bodies_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServingError):
        parse_multipart(b"--abc?", BOUNDARY)
    assert not caplog.records
