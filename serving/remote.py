"""What the client needs for results: the served model's description, images as bodies, maps from answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.api.inputs import FileReader, ImageInput, Pixels, origin_of, read_pixels
from protoseg.api.result import ModelInfo
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo, InputRule


@dataclass(frozen=True)
class Served:
    """What the service says of its model."""

    info: ModelInfo
    """Name, version, head and classes."""
    rule: InputRule
    """How an image becomes its input."""
    outputs: frozenset[str]
    """Outputs of its graph."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Served:
        """From the reply of ``GET /v1/model``; older services do not name the head."""
        classes = tuple(ClassInfo(name=c["name"], color=tuple(c["color"])) for c in told["classes"])
        info = ModelInfo(told["name"], told["version"], told.get("head", ""), classes)
        return cls(info, InputRule.model_validate(told["input"]), frozenset(told["outputs"]))

    def has(self, output: str) -> bool:
        """Whether the service can answer with ``confidence`` or ``agreement``."""
        from_logits = {"logits", "logits_stride"} if output == "confidence" else set[str]()
        return bool(({output} | from_logits) & self.outputs)


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


def read_map(png: bytes) -> NDArray[np.uint8]:
    """``(H, W)`` uint8 of a palette or grey PNG."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture)
