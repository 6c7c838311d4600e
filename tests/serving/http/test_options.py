from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protoseg.manifest import Manifest, read_manifest
from serving.errors import ServingError
from serving.http.options import output_for, parse_multipart, parse_options, split_body


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


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
        (b"--abc", "multipart/form-data; boundary=abc", "damaged"),
        (b"--abc\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\nx",
         "multipart/form-data; boundary=abc", "closing boundary"),
        (b"--abc\r\nX: y\r\n\r\nx\r\n--abc--", "multipart/form-data; boundary=abc", "form-data name"),
        (b"--abc\r\nContent-Disposition: form-data; name=\"a\"\r\n", "multipart/form-data; boundary=abc",
         "end of its header"),
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
        files, fields = split_body(b"bytes", kind)
        assert (files[0].data, fields) == (b"bytes", [])
    for name in ("image", "file"):
        files, fields = split_body(*encode([(name, ("a.png", b"bytes"))], {"output": "json"}))
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
        split_body(*encode(files))
    assert (caught.value.status, caught.value.code) == (400, code)


def test_json_bodies_are_refused() -> None:
    with pytest.raises(ServingError) as caught:
        split_body(b'{"image": "http://example.org/a.png"}', "application/json")
    assert caught.value.status == 415


def test_images_that_a_tool_calls_a_form() -> None:
    kind = "application/x-www-form-urlencoded"
    png = b"\x89PNG\r\n\x1a\n and so on"
    files, fields = split_body(png, kind)
    assert (files[0].data, fields) == (png, [])
    with pytest.raises(ServingError) as caught:
        split_body(b"image=http://127.0.0.1/", kind)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("accept", "output"),
    [
        ("", "mask"), ("*/*", "mask"), ("application/json", "json"), ("image/png, */*", "mask"),
        ("text/html, image/jpeg;q=0.9", "overlay"), ("application/geo+json", "polygons"),
        ("image/png;q=0.1, application/json", "json"), ("application/json;q=0, image/png", "mask"),
        ("application/json;q=0.2, */*", "mask"), ("application/json;q=0", "mask"),
        ("application/json;q=nan, image/jpeg;q=0.5", "overlay"), ("image/*, application/json;q=0.9", "mask"),
        ("application/json ; charset=utf-8 ; q=0.7, image/jpeg;q=0.6", "json"),
    ],
)  # fmt: skip
def test_accept_chooses_the_output(accept: str, output: str) -> None:
    assert output_for(accept) == output


def test_options(manifest: Manifest) -> None:
    pairs = [("classes", "red, 3"), ("tile", "1"), ("size", "model"), ("alpha", "0.25"), ("output", "rle")]
    options = parse_options([*pairs, ("output", "json")], "image/png", manifest)
    assert (options.output, options.tile, options.at_model_size, options.alpha) == ("rle", True, True, 0.25)
    assert options.classes == {1, 3}
    assert parse_options([], "application/geo+json", manifest).geojson
    assert not parse_options([("output", "")], "", manifest).geojson


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        (("output", "masks"), "bad_output"),
        (("ouput", "mask"), "bad_parameter"),
        (("alpha", "2"), "bad_parameter"),
        (("alpha", "nan"), "bad_parameter"),
        (("alpha", "x"), "bad_parameter"),
        (("classes", "dog"), "bad_parameter"),
        (("classes", "5"), "bad_parameter"),
        (("classes", "²"), "bad_parameter"),
        (("tile", "yes please"), "bad_parameter"),
        (("size", "huge"), "bad_parameter"),
        (("simplify", "-1"), "bad_parameter"),
        (("format", "xml"), "bad_parameter"),
    ],
)
def test_bad_options(pair: tuple[str, str], code: str, manifest: Manifest) -> None:
    with pytest.raises(ServingError) as caught:
        parse_options([pair], "", manifest)
    assert (caught.value.status, caught.value.code) == (422, code)
