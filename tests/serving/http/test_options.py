from __future__ import annotations

import pytest

from benchmarks.nearest_color import NAMES
from serving.errors import ServingError
from serving.http.options import output_for, parse_options


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


def test_options() -> None:
    pairs = [("classes", "red, 3"), ("tile", "1"), ("size", "model"), ("alpha", "0.25"), ("output", "rle")]
    options = parse_options([*pairs, ("output", "json")], "image/png", NAMES)
    assert (options.output, options.tile, options.size, options.alpha) == ("rle", "1", "model", 0.25)
    assert options.classes == {1, 3}
    assert parse_options([], "application/geo+json", NAMES).format == "geojson"
    assert parse_options([("output", "")], "", NAMES).format == "json"


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
def test_bad_options(pair: tuple[str, str], code: str) -> None:
    with pytest.raises(ServingError) as caught:
        parse_options([pair], "", NAMES)
    assert (caught.value.status, caught.value.code) == (422, code)
