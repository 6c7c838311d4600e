"""Depthwise convolutions whose gradients are cheap on a CPU.

oneDNN's backward pass of a depthwise convolution is up to twenty times slower than its forward pass when
the kernel is dilated, and its gradient of the weights is slow on small maps; in half precision strided ones
are slow too. With an EfficientNet they take a fifth of a training step. The same sums are faster as a
forward convolution of the gradient with the flipped kernel, and as one product of shifted maps for each tap
of the kernel.

Shape legend: ``B`` batch, ``C`` channels, ``Y X`` map, ``k`` kernel size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

Pair = tuple[int, int]
# Up to this many output pixels of a map, products of shifted maps beat oneDNN's gradient of the weights (the
# maps of a few images then stay in the cache).
SMALL_MAP = 1024


class _Depthwise(torch.autograd.Function):
    """``F.conv2d`` with one filter for each channel and a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        """(B, C, Y, X) and (C, 1, k, k) -> (B, C, Y', X')."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Gradients of the map and the weights."""
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        grad_x: Tensor | None = None
        grad_weight: Tensor | None = None
        if stride == (1, 1):
            if ctx.needs_input_grad[0]:
                reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
                flipped = weight.flip(2, 3).to(grad.dtype)
                grad_x = F.conv2d(grad, flipped, None, 1, reach, dilation, x.shape[1]).to(x.dtype)
            if ctx.needs_input_grad[1] and grad.shape[2] * grad.shape[3] <= SMALL_MAP:
                grad_weight = _weights_by_tap(x, grad, weight.shape, padding, dilation).to(weight.dtype)
        wanted = [
            ctx.needs_input_grad[0] and grad_x is None,
            ctx.needs_input_grad[1] and grad_weight is None,
            False,
        ]
        if any(wanted):
            native = torch.ops.aten.convolution_backward(
                grad.float(), x.float(), weight.float(), None, stride, padding, dilation, False, (0, 0),
                x.shape[1], wanted,
            )  # fmt: skip
            grad_x = native[0].to(x.dtype) if wanted[0] else grad_x
            grad_weight = native[1].to(weight.dtype) if wanted[1] else grad_weight
        return grad_x, grad_weight, None, None, None


def _weights_by_tap(x: Tensor, grad: Tensor, shape: torch.Size, padding: Pair, dilation: Pair) -> Tensor:
    """Gradient (C, 1, k, k) of the weights at stride 1, summed in float32.

    For each tap: the gradient of the result times the part of the map that this tap saw.
    """
    # channels last: the part is then rows of whole channel vectors
    seen = x.float().permute(0, 2, 3, 1).contiguous()
    own = grad.float().permute(0, 2, 3, 1).contiguous()
    result = seen.new_zeros(shape[2], shape[3], shape[0])
    for row in range(shape[2]):
        down = row * dilation[0] - padding[0]
        for column in range(shape[3]):
            right = column * dilation[1] - padding[1]
            rows, columns = (
                _overlap(x.shape[2], own.shape[1], down),
                _overlap(x.shape[3], own.shape[2], right),
            )
            if rows and columns:  # a tap of a wide kernel may have seen nothing but padding
                part = seen[
                    :, rows.start + down : rows.stop + down, columns.start + right : columns.stop + right
                ]
                result[row, column] = (
                    part * own[:, rows.start : rows.stop, columns.start : columns.stop]
                ).sum((0, 1, 2))
    return result.permute(2, 0, 1)[:, None].contiguous()


def _overlap(size: int, result: int, shift: int) -> range:
    """Places of the result whose value ``shift`` further on lies inside the map."""
    return range(max(0, -shift), min(result, size - shift))


def _without_padding_taps(weight: Tensor, padding: Pair, dilation: Pair, size: Pair) -> tuple[Tensor, Pair]:
    """The kernel (C, 1, k, k) and padding without taps that see nothing but padding at stride 1.

    On small maps the wide kernels of an ASPP are left with their centre; the result is the same.
    """
    cut = [
        sum(not _overlap(length, length + 2 * p - d * (k - 1), tap * d - p) for tap in range(k // 2))
        for k, p, d, length in zip(weight.shape[2:], padding, dilation, size, strict=True)
    ]
    if not any(cut) or any(
        2 * p != d * (k - 1) for k, p, d in zip(weight.shape[2:], padding, dilation, strict=True)
    ):
        return weight, padding
    rows, columns = (slice(n, k - n) for n, k in zip(cut, weight.shape[2:], strict=True))
    return weight[:, :, rows, columns], (padding[0] - cut[0] * dilation[0], padding[1] - cut[1] * dilation[1])


def _pair(values: tuple[int, ...]) -> Pair:
    return values[0], values[1]


class _Conv2d(nn.Conv2d):
    """``nn.Conv2d`` through ``_Depthwise`` where a gradient is wanted on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        """As the base class."""
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        weight: Tensor = self.weight
        assert not isinstance(self.padding, str)
        stride, padding, dilation = _pair(self.stride), _pair(self.padding), _pair(self.dilation)
        if stride == (1, 1):
            size = (input.shape[2], input.shape[3])
            weight, padding = _without_padding_taps(weight, padding, dilation, size)
        if not torch.is_grad_enabled():
            return F.conv2d(input, weight, None, stride, padding, dilation, self.groups)
        result: Tensor = _Depthwise.apply(input, weight, stride, padding, dilation)
        return result


class _Conv2dSame(Conv2dSame):
    """The same for timm's convolution with TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        """As the base class."""
        result: Tensor
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            result = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            stride, dilation = _pair(self.stride), _pair(self.dilation)
            x = pad_same(x, list(self.weight.shape[-2:]), list(stride), list(dilation))
            result = _Depthwise.apply(x, self.weight, stride, (0, 0), dilation)
        return result


def cheap_depthwise(network: nn.Module) -> None:
    """Give the depthwise convolutions of a network that is trained on a CPU the backward pass of this module.

    Parameters, names and forward pass stay as they are.
    """
    for module in network.modules():
        depthwise = (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels == module.out_channels > 1
            and module.bias is None
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if depthwise and type(module) is nn.Conv2d:
            module.__class__ = _Conv2d
        elif depthwise and type(module) is Conv2dSame:
            module.__class__ = _Conv2dSame
