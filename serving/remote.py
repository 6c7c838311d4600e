"""What the client needs for results: the served model's description, images as bodies, maps from answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.api.inputs import FileReader, ImageInput, Pixels, origin_of, read_pixels
from protoseg.api.result import ModelInfo
from protoseg.errors import UserError
from protoseg.explain.atlas import Prototype, cut_strip
from protoseg.explain.reasons import ABSENT, Grounds, Nearest
from protoseg.input_rule import InputRule
from protoseg.manifest import ClassInfo
from serving.errors import LACKING


@dataclass(frozen=True)
class Served:
    """What the service says of its model."""

    info: ModelInfo
    """Name, version, head and classes."""
    rule: InputRule
    """How an image becomes its input."""
    outputs: frozenset[str]
    """Outputs of its graph."""
    explains: bool = False
    """Whether it has training patches of its prototypes."""
    strips: dict[str, bytes] = field(default_factory=dict)
    """Pictures of these that were asked for, by their path."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Served:
        """From the reply of ``GET /v1/model``; older services do not name the head."""
        classes = tuple(ClassInfo(name=c["name"], color=tuple(c["color"])) for c in told["classes"])
        info = ModelInfo(told["name"], told["version"], told.get("head", ""), classes)
        rule, outputs = InputRule.model_validate(told["input"]), frozenset(told["outputs"])
        return cls(info, rule, outputs, told.get("explains", False))

    def has(self, output: str) -> bool:
        """Whether the service can answer with ``confidence``, ``agreement`` or ``novelty``."""
        from_logits = {"logits", "logits_stride"} if output == "confidence" else set[str]()
        return bool(({output} | from_logits) & self.outputs)

    def check(self, *, novelty: bool, explain: bool) -> None:
        """Refuse what the service cannot tell.

        Raises:
            UserError: With what its bundle must be exported with.
        """
        asked = {"novelty": novelty and not self.has("novelty"), "explain": explain and not self.explains}
        for what, lacking in asked.items():
            if lacking:
                raise UserError(f"the served {self.info.name} {self.info.version} has {LACKING[what]}")


def upload(image: ImageInput, rule: InputRule) -> tuple[bytes, Callable[[], Pixels]]:
    """What is sent for an image, and what gives its pixels when they are asked for.

    Raises:
        UserError: If it cannot be read.
    """
    reader = FileReader.of(rule)
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        return data, partial(reader.data, data)
    path = origin_of(image).path
    if path is not None and not isinstance(image, Image.Image):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give its images as a list")
        try:
            return path.read_bytes(), partial(reader.file, path)
        except OSError as error:
            raise UserError(f"image {path} cannot be read: {error.strerror}") from error
    pixels = read_pixels(image, rule.channels, reader, reader.how)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if rule.channels == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), lambda: pixels


def read_grounds(told: dict[str, Any], served: Served, fetch: Callable[[str], bytes]) -> Grounds:
    """What an image is explained by, from the reply of ``output=explain&grid=1``.

    Similarities are in steps of 1/255, and known of the nearest class and the runner-up. Patches are fetched
    at once: the result outlives the connection.

    Args:
        told: The reply.
        served: The model; it keeps patches for the next image.
        fetch: Gives what the service has at a path.
    """
    names, grid = [item.name for item in served.info.classes], told["grid"]
    shape = grid["rows"], grid["columns"]

    def cells(key: str, kind: str = "u1") -> NDArray[Any]:
        return np.frombuffer(base64.b64decode(grid[key]), kind).reshape(shape)

    nearest = cells("prototype", "<u2")
    strips = {item["index"]: item["thumbnails"] for item in told["prototypes"]}
    prototypes = {
        item["index"]: Prototype.model_validate(
            {key: value for key, value in item.items() if key not in ("class", "thumbnails")}
            | {"class_id": names.index(item["class"]), "strip": item["thumbnails"]["path"]}
        )
        for item in told["prototypes"]
    }
    # index = class * K + number, and K is not told: from a class with an id, or else there is but the first
    counts = [(p.index - p.number) // p.class_id for p in prototypes.values() if p.class_id]
    count = counts[0] if counts else 1 + max(prototypes, default=0)
    similarity = np.full((len(names), *shape), ABSENT, np.float32)
    second = cells("runner_up")
    known = second < len(names)
    place = np.where(known, second, 0)[None].astype(np.int64)
    value = np.where(known, cells("runner_up_similarity") / 255, ABSENT)[None].astype(np.float32)
    np.put_along_axis(similarity, place, value, 0)
    own = (nearest.astype(np.int64) // count)[None]
    np.put_along_axis(similarity, own, (cells("similarity") / 255)[None].astype(np.float32), 0)
    for index in sorted(set(np.unique(nearest).tolist()) & set(prototypes)):
        path = strips[index]["path"]
        if path not in served.strips:
            served.strips[path] = fetch(path)

    def thumbnails(index: int) -> list[Image.Image]:
        with Image.open(io.BytesIO(served.strips[strips[index]["path"]])) as opened:
            strip = opened.convert("RGB")
        return cut_strip(strip, strips[index]["side"], len(prototypes[index].patches))

    near = Nearest(nearest, similarity, (grid["covered"][0], grid["covered"][1]))
    regions = (told["regions"], told["regions_left_out"])
    return Grounds(near, prototypes, count, thumbnails, regions)


def read_map(png: bytes) -> NDArray[np.uint8]:
    """``(H, W)`` uint8 of a palette or grey PNG."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture)
