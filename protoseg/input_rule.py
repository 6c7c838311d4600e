"""How an image becomes a network's input: one rule for training, checkpoint, bundle and service.

Needs pydantic only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from protoseg.records import Record, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ValueRange = tuple[float, float]
FULL_16_BIT: ValueRange = (0, 65535)


class ResizeConfig(Section):
    """How an image is brought to the working size before the network sees it."""

    mode: Literal["none", "fixed", "short_side", "long_side"] = "none"
    """``fixed`` uses height and width, the other two use size and keep the aspect ratio."""
    height: int | None = Field(None, ge=8)
    """Working height in pixels (``fixed``)."""
    width: int | None = Field(None, ge=8)
    """Working width in pixels (``fixed``)."""
    size: int | None = Field(None, ge=8)
    """Length of the short or long side in pixels."""

    @model_validator(mode="after")
    def _check(self) -> ResizeConfig:
        if self.mode == "fixed" and (self.height is None or self.width is None):
            raise ValueError("resize.mode=fixed needs resize.height and resize.width")
        if self.mode in ("short_side", "long_side") and self.size is None:
            raise ValueError(f"resize.mode={self.mode} needs resize.size")
        return self

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Working size of an image of ``height`` x ``width`` pixels, as (height, width)."""
        if self.mode == "none":
            return height, width
        if self.mode == "fixed":
            assert self.height is not None
            assert self.width is not None
            return self.height, self.width
        assert self.size is not None
        side = min(height, width) if self.mode == "short_side" else max(height, width)
        scale = self.size / side
        return max(1, round(height * scale)), max(1, round(width * scale))


def to_bytes(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Pixel values of more than 8 bits as bytes: ``value_range`` is stretched to 0 to 255 and rounded.

    Values outside are cut off, values that are no number become the lowest. The full 16 bits are divided by
    257.
    """
    low, high = value_range
    scaled = values.astype("float64")
    scaled[scaled != scaled] = low
    scaled -= low
    scaled *= 255.0
    scaled /= high - low
    scaled += 0.5
    return scaled.clip(0, 255).astype("uint8")


class InputRule(Record):
    """How a decoded image becomes the network's input.

    An image is resized by ``resize`` (bilinear, antialiased), then normalised as
    ``(x / 255 - mean) / std`` inside the network, which also pads it at the bottom and right with the
    mean to a multiple of ``stride_multiple`` and crops its logits back. Logits are upsampled to the
    original size (bilinear, half-pixel centres) before the argmax.
    """

    channels: int = Field(ge=1)
    """Channels; 3 is RGB."""
    mean: list[float]
    """Per-channel mean in [0, 1]."""
    std: list[float]
    """Per-channel standard deviation in [0, 1]."""
    stride_multiple: int = Field(ge=1)
    """Height and width are padded to a multiple of this, in pixels."""
    resize: ResizeConfig
    """Working size rule."""
    crop: tuple[int, int]
    """Training crop (height, width) in pixels."""
    value_range: ValueRange | None = None
    """Values of images of more than 8 bits that become 0 and 255. Null: the images were of 8 bits; 16 bits
    are
    divided by 257."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether images are turned upright as their EXIF tag says."""
