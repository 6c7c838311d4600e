"""What a client may ask for: the one description of request options, in code and in ``/docs.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, WithJsonSchema, model_validator

from protoseg.records import Section, explain_validation
from serving.errors import ServingError

_ACCEPTED = {
    "application/json": "json",
    "application/geo+json": "polygons",
    "image/png": "mask",
    "image/jpeg": "overlay",
    "image/*": "mask",
    "*/*": "mask",
}
MAX_POINTS = 256
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")


def _class_ids(value: Any, info: ValidationInfo) -> frozenset[int]:
    """Ids of classes given by name or id; the names of all of them are the validation's context."""
    names: Sequence[str] = info.context or ()
    chosen = set()
    for word in (word.strip() for word in str(value).split(",")):
        if word in names:
            chosen.add(names.index(word))
        elif word.isascii() and word.isdigit() and len(word) < 4 and int(word) < len(names):
            chosen.add(int(word))
        else:
            raise ValueError(
                f"there is no class {word[:40]!r}; give names or ids separated by commas, "
                "GET /v1/model lists them"
            )
    return frozenset(chosen)


def _numbers(value: Any) -> tuple[int, ...]:
    """Pixel numbers separated by commas."""
    words = [word.strip() for word in str(value).split(",")]
    if len(words) > MAX_POINTS:
        raise ValueError(f"at most {MAX_POINTS} pixels at a time")
    if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise ValueError("give whole pixel numbers from 0, separated by commas")
    return tuple(map(int, words))


class Options(Section):
    """What a client wants to know about an image."""

    output: Literal[
        "mask", "json", "rle", "polygons", "overlay", "confidence", "agreement", "novelty", "explain", "hf"
    ] = "mask"  # fmt: skip
    """What to answer with; without it the Accept header chooses. ``agreement`` is the linear head's
    probability of the label, ``novelty`` how unlike everything labelled a pixel is (novel from 128 on)."""
    size: Literal["original", "model"] = "original"
    """Maps at the image's own or the network's size."""
    classes: Annotated[
        frozenset[int] | None, BeforeValidator(_class_ids), WithJsonSchema({"type": "string"})
    ] = None
    """Class names or ids, separated by commas; others become ignore_index or are left out."""
    tile: Annotated[Literal["0", "1", "false", "true"], BeforeValidator(str.lower)] = "0"
    """1: compute at the image's own size in overlapping, blended tiles."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the class colour in an overlay."""
    format: Literal["json", "geojson"] = "json"
    """Form of polygons."""
    simplify: float = Field(0.0, ge=0, le=100)
    """Pixels that a polygon may deviate."""
    x: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers), WithJsonSchema({"type": "string"})] = None
    """Columns of the pixels to explain, separated by commas; without any, regions are explained."""
    y: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers), WithJsonSchema({"type": "string"})] = None
    """Their rows, as many."""
    grid: Annotated[Literal["0", "1", "false", "true"], BeforeValidator(str.lower)] = "0"
    """1: with an explanation, that of every cell of the feature map in base64."""

    @model_validator(mode="after")
    def _check_points(self) -> Options:
        across, down = len(self.x or ()), len(self.y or ())
        if across != down:
            raise ValueError(f"x and y are pairs: got {across} of x and {down} of y")
        return self

    @property
    def points(self) -> list[tuple[int, int]]:
        """Pixels to explain, as (x, y)."""
        return list(zip(self.x or (), self.y or (), strict=True))

    @property
    def is_json(self) -> bool:
        """Whether the answer is made of records."""
        return self.output in ("json", "rle", "polygons", "explain", "hf")

    @property
    def needs_confidence(self) -> bool:
        """Whether the answer tells the largest probability."""
        return self.output in ("json", "rle", "polygons", "hf", "confidence")

    @property
    def needs_label_probability(self) -> bool:
        """Whether the answer tells the linear head's probability of the label."""
        return self.output in ("json", "rle", "polygons", "agreement")

    @property
    def needs_novelty(self) -> bool:
        """Whether the answer tells novelty."""
        return self.output in ("json", "rle", "polygons", "novelty")


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


def parse_options(pairs: Iterable[tuple[str, str]], accept: str, classes: Sequence[str]) -> Options:
    """Read the parameters.

    Args:
        pairs: Names and values from query and form, the query first; the first value counts.
        accept: The Accept header, which chooses the output when no parameter does.
        classes: Names of the bundle's classes by id.

    Raises:
        ServingError: 422 for an unknown name or a value out of range.
    """
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in Options.model_fields:
            raise ServingError(
                422, "bad_parameter",
                f"unknown parameter {name[:40]!r}; known: {', '.join(Options.model_fields)}",
            )  # fmt: skip
        if value != "":
            given.setdefault(name, value)
    if "output" not in given:
        given["output"] = output_for(accept)
        if given["output"] == "polygons" and "geo+json" in accept.lower():
            given["format"] = "geojson"
    try:
        return Options.model_validate(given, context=classes)
    except ValidationError as error:
        code = "bad_output" if error.errors()[0]["loc"] == ("output",) else "bad_parameter"
        raise ServingError(422, code, explain_validation(error)[:300]) from None
