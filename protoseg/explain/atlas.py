"""The atlas: the training patches nearest to each prototype, on disk beside a run and inside a bundle.

A folder with ``atlas.json`` and a strip of thumbnails for each prototype, ``INDEX.jpg``. Torch-free.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from pydantic import Field, ValidationError

from protoseg.errors import DataError
from protoseg.files import sha256_file
from protoseg.records import Record, explain_validation

ATLAS_SCHEMA = 1
ATLAS_DIR = "prototypes"
ATLAS_NAME = "atlas.json"
SHEET_NAME = "prototypes.png"
THUMBNAIL = 96
"""Side of a thumbnail in a run's strips, in pixels."""
BUNDLE_BYTES = 400 * 2**10
"""Strips of a bundle are made smaller until all of them together have no more than this."""
_BUNDLE_STRIPS = ((6, 64), (4, 64), (4, 48), (3, 48), (2, 48), (1, 48), (1, 32))  # patches, side in pixels
_RUN_QUALITY, _BUNDLE_QUALITY = 90, 80


class Patch(Record):
    """A place in a training image that is near to a prototype. Coordinates are pixels of the image itself."""

    image: str
    """Its name in the list of the training."""
    y: int
    """Row of the pixel whose feature was compared."""
    x: int
    """Its column."""
    box: tuple[int, int, int, int]
    """What the thumbnail shows: top, left, bottom, right; the last two are one beyond."""
    cosine: float = Field(ge=-1.001, le=1.001)
    """Similarity of feature and prototype."""
    label: str | None
    """Class that the mask gives the pixel; null where it is ignored."""


class Prototype(Record):
    """One prototype and what it stands for."""

    index: int = Field(ge=0)
    """``class * K + number``: what the graph's output ``prototype`` says."""
    class_id: int = Field(ge=0)
    """Its class."""
    number: int = Field(ge=0)
    """Which of its class's prototypes it is, from 0."""
    use_share: float | None = Field(ge=0, le=1)
    """Share of its class's labelled pixels that are nearer to it than to the class's other prototypes; null:
    no such pixel was looked at."""
    precision: float | None = Field(ge=0, le=1)
    """Of the labelled pixels that are nearer to it than to any other prototype, the share with its class;
    null: there is none."""
    doubts: list[str]
    """Why its name may not be trusted; empty: nothing speaks against it."""
    patches: list[Patch]
    """The nearest ones, at most one of an image, the most similar first: a thumbnail of the strip each."""
    strip: str
    """File with the thumbnails side by side."""


class Atlas(Record):
    """``atlas.json``."""

    schema_version: int = ATLAS_SCHEMA
    """Version of this contract."""
    name: str
    """Name of the run."""
    step: int
    """Optimiser steps behind the weights."""
    weights_sha256: str
    """Hash of the weights whose prototypes these are."""
    classes: list[str]
    """Names by class id."""
    num_prototypes: int = Field(ge=1)
    """K, prototypes for each class."""
    num_images: int = Field(ge=1)
    """Labelled training images that were looked at."""
    patch: int = Field(ge=1)
    """Side of a patch in pixels of the working size."""
    side: int = Field(ge=1)
    """Side of a thumbnail in pixels."""
    prototypes: list[Prototype]
    """In the order of their index; classes without prototypes are left out."""

    def by_index(self) -> dict[int, Prototype]:
        """Prototypes by their index."""
        return {item.index: item for item in self.prototypes}


def read_atlas(folder: Path) -> Atlas:
    """Read the ``atlas.json`` of a folder.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    path = folder / ATLAS_NAME
    again = "make it again with: protoseg explain RUN"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no {path}; make it with: protoseg explain RUN") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {again}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != ATLAS_SCHEMA:
        raise DataError(f"{path} has schema version {version!r}, this protoseg reads {ATLAS_SCHEMA}; {again}")
    try:
        return Atlas.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{path} is not an atlas ({explain_validation(error)}); {again}") from error


def fitting_atlas(folder: Path, weights_sha256: str) -> Atlas | None:
    """The atlas of a folder, or None where there is none, or one of other weights.

    Raises:
        DataError: If it is damaged.
    """
    if not (folder / ATLAS_NAME).is_file():
        return None
    atlas = read_atlas(folder)
    return atlas if atlas.weights_sha256 == weights_sha256 else None


def read_thumbnails(folder: Path, atlas: Atlas, index: int) -> list[Image.Image]:
    """The thumbnails of a prototype, in the order of its patches.

    Raises:
        DataError: If the strip cannot be read.
    """
    item = atlas.by_index()[index]
    path = folder / item.strip
    try:
        with Image.open(path) as opened:
            strip = opened.convert("RGB")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}); make it again with: protoseg explain RUN"
        ) from error
    return cut_strip(strip, atlas.side, len(item.patches))


def cut_strip(strip: Image.Image, side: int, count: int) -> list[Image.Image]:
    """The thumbnails of a strip, each ``side`` pixels wide and high."""
    return [strip.crop((n * side, 0, (n + 1) * side, side)) for n in range(count)]


def encode_strip(thumbnails: list[Image.Image], side: int, quality: int) -> bytes:
    """Thumbnails side by side as a JPEG, each ``side`` pixels wide and high; grey where there is none."""
    strip = Image.new("RGB", (side * max(1, len(thumbnails)), side), (128, 128, 128))
    for number, item in enumerate(thumbnails):
        strip.paste(item.resize((side, side), Image.Resampling.BILINEAR), (number * side, 0))
    data = io.BytesIO()
    strip.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def write_atlas(folder: Path, atlas: Atlas, strips: Mapping[str, bytes]) -> None:
    """Write ``atlas.json`` and the strips into an empty folder."""
    for name, data in strips.items():
        (folder / name).write_bytes(data)
    (folder / ATLAS_NAME).write_text(atlas.model_dump_json(indent=1) + "\n", encoding="utf-8", newline="\n")


def run_strips(thumbnails: Mapping[str, list[Image.Image]]) -> dict[str, bytes]:
    """Strips as a run keeps them, by file name."""
    return {name: encode_strip(items, THUMBNAIL, _RUN_QUALITY) for name, items in thumbnails.items()}


def pack_atlas(source: Path, target: Path) -> dict[str, str]:
    """Copy a run's atlas into a bundle with thumbnails so small and few that they fit ``BUNDLE_BYTES``.

    With very many prototypes one patch of 32 pixels each is left, however much that is.

    Args:
        source: Folder of the run's atlas.
        target: Folder inside the bundle; it is made.

    Returns:
        SHA-256 by file name below ``target``.

    Raises:
        DataError: If the atlas cannot be read.
    """
    atlas = read_atlas(source)
    found = {item.index: read_thumbnails(source, atlas, item.index) for item in atlas.prototypes}
    for count, side in _BUNDLE_STRIPS:
        strips = {
            item.strip: encode_strip(found[item.index][:count], side, _BUNDLE_QUALITY)
            for item in atlas.prototypes
        }
        if sum(map(len, strips.values())) <= BUNDLE_BYTES:
            break
    fewer = [item.model_copy(update={"patches": item.patches[:count]}) for item in atlas.prototypes]
    target.mkdir(parents=True)
    write_atlas(target, atlas.model_copy(update={"side": side, "prototypes": fewer}), strips)
    return {name: sha256_file(target / name) for name in (ATLAS_NAME, *strips)}
