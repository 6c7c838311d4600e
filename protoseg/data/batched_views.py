"""The views of ``protoseg.data.views`` for a whole batch, as tensor operations on any device.

From the same draws they are the same views but for rounding: masks and padding to the bit, weak views within
one grey level. Resizing rounds where torch's resize of bytes on a CPU does: its weights to 16 bits, and grey
levels, halves up, after each of two passes (along rows, then along columns). Colour operations cut fractions
off and the blur rounds, as torchvision's do. A sum in another order may fall to the other side of a whole
number, and the colour operations behind it amplify such a level as they amplify all contrasts: with the
default strengths a few pixels in a million of a strong view differ, few of them by more than one level.

Nothing here waits for the device: shapes and which image gets what are known from the draws on the host, and
all numbers go over in one piece.

Shape legend: ``B`` images, ``V`` strong views of each, ``N = B * V``, ``C`` channels, ``M`` label planes,
``h w`` the largest window of the batch, ``H W`` crop, ``K`` taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from protoseg.data.views import ColorDraw, Geometry
from protoseg.processes import sent

Numbers = NDArray[np.float32]
HUE = 3
ALMOST_256 = 256 - 1e-3
"""What torchvision multiplies intensities in [0, 1] by before it cuts fractions off."""


class Views(NamedTuple):
    """The views of a batch."""

    weak: Tensor
    """(B, C, H, W) uint8."""
    strong: Tensor
    """(B, V, C, H, W) uint8."""
    labels: Tensor
    """(B, M, H, W) uint8; anything in padding."""
    valid: Tensor
    """(B, H, W) bool, false in padding."""


def make_views(
    images: Sequence[Tensor],
    geometries: Sequence[Geometry],
    colors: Sequence[Sequence[ColorDraw]],
    crop: tuple[int, int],
    fill: Tensor,
) -> Views:
    """Weak and strong views.

    Args:
        images: (C + M, any height, any width) uint8 each, label planes last, on the device of ``fill``.
        geometries: A draw for each image.
        colors: V draws for each image; V may be 0.
        crop: (H, W) in pixels.
        fill: (C,) uint8 value of padding.
    """
    channels, count = len(fill), len(colors[0])
    plan = _plan([draw for draws in colors for draw in draws], rgb=channels == 3)
    table = np.array([_row(g) for g in geometries], np.float32)
    placed, *numbers = _send([table, *plan.tables], fill.device)
    with torch.no_grad(), _whole_float32():
        weak, labels, valid = _place(images, geometries, placed, crop, fill)
        strong = weak[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        if count:
            strong = _recolor(strong, plan, numbers)
    strong = strong.to(torch.uint8).view(len(images), count, channels, *crop)
    return Views(weak.to(torch.uint8), strong, labels, valid)


@contextmanager
def _whole_float32() -> Iterator[None]:
    # TF32 would round the weights of the filters to 11 bits
    product, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = product.allow_tf32, cudnn.allow_tf32
    product.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        product.allow_tf32, cudnn.allow_tf32 = before


def _send(tables: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    flat = torch.from_numpy(np.concatenate([table.ravel() for table in tables]))
    parts = torch.split(sent(flat, device), [table.size for table in tables])
    return [part.view(table.shape) for part, table in zip(parts, tables, strict=True)]


def _row(g: Geometry) -> tuple[int, ...]:
    return g.height, g.out_height, g.pad_top, 0, g.width, g.out_width, g.pad_left, int(g.flip)


def _place(
    images: Sequence[Tensor],
    geometries: Sequence[Geometry],
    table: Tensor,
    crop: tuple[int, int],
    fill: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole grey levels (B, C, H, W) float32, labels (B, M, H, W) uint8, and valid (B, H, W)."""
    windows = [
        image[:, g.top : g.top + g.height, g.left : g.left + g.width]
        for image, g in zip(images, geometries, strict=True)
    ]
    height, width = max(g.height for g in geometries), max(g.width for g in geometries)
    held = fill.new_zeros(len(images), len(images[0]), height, width)
    torch._foreach_copy_([held[b, :, : x.shape[1], : x.shape[2]] for b, x in enumerate(windows)], windows)
    rows, columns = _Axis(table[:, :4], crop[0]), _Axis(table[:, 4:], crop[1])
    valid = rows.inside[:, :, None] & columns.inside[:, None, :]
    channels = len(fill)
    pixels = held[:, :channels].float().flatten(1, 2) @ columns.weights(width).transpose(1, 2)
    pixels = _nearest_level(pixels).view(len(images), channels, height, -1)
    pixels = _nearest_level(rows.weights(height)[:, None] @ pixels)
    image = torch.where(valid[:, None], pixels, fill.view(-1, 1, 1))
    planes = held[:, channels:].flatten(2)
    index = (rows.nearest[:, :, None] * width + columns.nearest[:, None, :]).flatten(1)
    labels = planes.gather(2, index[:, None].expand(-1, planes.shape[1], -1))
    return image, labels.view(len(images), -1, *crop), valid


def _nearest_level(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


class _Axis:
    """Where the pixels of a crop come from along one axis of windows.

    Args:
        table: (B, 4) length of the window, its length in the view, padding before it, and whether it is
            flipped.
        crop: Pixels of the crop.
    """

    def __init__(self, table: Tensor, crop: int) -> None:
        self.size, out, pad, flip = (column[:, None] for column in table.unbind(1))
        place = torch.arange(crop, device=table.device) - pad
        self.inside = (place >= 0) & (place < out)
        place = torch.where(flip > 0, out - 1 - place, place)
        self.scale = self.size.double() / out
        """(B, 1) pixels of the window for each pixel of the view."""
        scale = self.size / out
        self.nearest = ((place + 0.5) * scale).floor().clamp(min=0).minimum(self.size - 1).long()
        """(B, crop) pixel of the window, as torch's ``nearest-exact`` finds it."""
        self.centre = (place.double() + 0.5) * self.scale

    def weights(self, length: int) -> Tensor:
        """(B, crop, length) shares of a window's pixels: the triangle filter, wider where it shrinks.

        Rounded as torch rounds them for bytes: to as many bits as the largest has room for in 16.
        """
        pixel = torch.arange(length, device=self.size.device)
        distance = (pixel + 0.5 - self.centre[:, :, None]).abs_()
        weight = (1 - distance / self.scale.clamp(min=1)[:, :, None]).clamp_(min=0)
        weight *= (pixel < self.size[:, :, None]) & self.inside[:, :, None]
        weight /= weight.sum(2, keepdim=True).clamp_(min=1e-6)
        bits = torch.log2(32767.5 / weight.amax((1, 2), keepdim=True)).ceil_() - 1
        unit = 0.5 ** bits.clamp_(max=22)
        return weight.div_(unit).add_(0.5).floor_().mul_(unit).float()


class _Plan(NamedTuple):
    """What is done to N views: numbers to send, and what the host has to know."""

    tables: tuple[Numbers, Numbers, Numbers, Numbers]
    """``blends`` (4, N, 4): at each of the four places in the order, ``factor``, ``1 - factor``, and whether
    to blend with the mean grey level (contrast) or each pixel's (saturation); with neither it is brightness.
    ``hues`` (rows, 2): view and shift, by place. ``gray`` (N,): 1 where colours go. ``blurs`` (rows, 1 + K):
    view and taps."""
    hues: list[int]
    """Views whose hue is shifted at each place."""
    rgb: bool


def _plan(draws: Sequence[ColorDraw], *, rgb: bool) -> _Plan:
    blends = np.zeros((4, len(draws), 4), np.float32)
    blends[:, :, 0] = 1
    hues: list[list[tuple[int, float]]] = [[], [], [], []]
    for number, draw in enumerate(draws):
        for place, operation in enumerate(draw.order if draw.jitter else ()):
            if operation == HUE:
                hues[place] += [(number, draw.shift)] if rgb else []
            elif rgb or operation < 2:
                factor = draw.factors[operation]
                blends[place, number] = factor, 1 - factor, operation == 1, operation == 2
    gray = np.array([draw.gray and rgb for draw in draws], np.float32)
    blurred = [(number, draw) for number, draw in enumerate(draws) if draw.blur]
    radius = max((draw.radius for _, draw in blurred), default=0)
    blurs = np.zeros((len(blurred), 2 + 2 * radius), np.float32)
    for row, (number, draw) in zip(blurs, blurred, strict=True):
        reach = np.arange(-draw.radius, draw.radius + 1)
        taps = np.exp(-0.5 * (reach / draw.sigma) ** 2)
        row[0] = number
        row[1 + radius - draw.radius : 2 + radius + draw.radius] = taps / taps.sum()
    shifts = np.array([row for part in hues for row in part], np.float32).reshape(-1, 2)
    return _Plan((blends, shifts, gray, blurs), [len(part) for part in hues], rgb)


def _recolor(image: Tensor, plan: _Plan, numbers: Sequence[Tensor]) -> Tensor:
    """Colour operations on whole grey levels (N, C, H, W) float32, as ``views.apply_color`` does them."""
    blends, hues, gray, blurs = numbers
    for blend, hue in zip(blends, torch.split(hues, plan.hues), strict=True):
        factor, rest, with_mean, with_own = blend[:, :, None, None, None].unbind(1)
        if plan.rgb:
            level = _gray_level(image)
            other = level * with_own + level.mean((1, 2, 3), keepdim=True) * with_mean
            # as torch adds a multiple: a sum of two products would fall below whole numbers elsewhere
            image = torch.addcmul(image * factor, other, rest)
        else:
            mean = image.mean((1, 2, 3), keepdim=True) * with_mean
            image = (image - mean) * factor + mean
        image = image.clamp_(0, 255).floor_()
        if len(hue):
            rows = hue[:, 0].long()
            image.index_copy_(0, rows, _shift_hue(image.index_select(0, rows), hue[:, 1, None, None]))
    if plan.rgb:
        image = torch.where(gray[:, None, None, None] > 0, _gray_level(image), image)
    if len(blurs):
        rows = blurs[:, 0].long()
        image = image.index_copy(0, rows, _blur(image.index_select(0, rows), blurs[:, 1:]))
    return image


def _gray_level(image: Tensor) -> Tensor:
    """(N, 1, H, W), without fractions."""
    red, green, blue = torch.split(image, 1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _shift_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by ``shift`` (N, 1, 1), by hue, chroma and value (A. R. Smith 1978)."""
    red, green, blue = (image / 255).unbind(1)
    low, value = (image / 255).aminmax(dim=1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red, (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )  # fmt: skip
    place = torch.arange(5, 0, -2, device=image.device).view(3, 1, 1) + (sixth + 6 * shift)[:, None]
    place = place.remainder_(6)
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    levels = value[:, None] - chroma[:, None] * share
    return levels.clamp_(0, 1).mul_(ALMOST_256).floor_()


def _blur(image: Tensor, taps: Tensor) -> Tensor:
    """Gaussian blur of (N, C, H, W) along rows and columns by an image's own ``taps`` (N, K)."""
    count, channels = image.shape[:2]
    radius = taps.shape[1] // 2
    padded = F.pad(image, [radius] * 4, mode="reflect").view(1, count * channels, *(
        side + 2 * radius for side in image.shape[2:]))  # fmt: skip
    weight = taps.repeat_interleave(channels, 0)[:, None]
    passed = F.conv2d(padded, weight[:, :, None, :], groups=len(weight))
    return F.conv2d(passed, weight[:, :, :, None], groups=len(weight)).view_as(image).round_()
