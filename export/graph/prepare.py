"""Rewrites of a network that change its graph and not its results, before it is traced."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.helpers import to_2tuple
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from protoseg.models.segmenter import Segmenter


def same_padding(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "same" padding (before, after) of a size that is a multiple of ``stride``."""
    total = max(dilation * (kernel - 1) + 1 - stride, 0)
    return total // 2, total - total // 2


class StaticSameConv(nn.Module):
    """A convolution whose "same" padding is a constant.

    Valid because images are padded to the stride multiple, so that every stride divides its input. The
    dynamic rule costs six nodes for each layer and minutes of symbolic arithmetic when traced.

    Args:
        conv: timm's layer; its weights are shared.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv
        (top, bottom), (left, right) = (
            same_padding(conv.kernel_size[i], conv.stride[i], conv.dilation[i]) for i in (0, 1)
        )
        self.symmetric = top == bottom and left == right
        self.padding, self.pad = (top, left), (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C', Y / stride, X / stride)."""
        conv = self.conv
        padding = self.padding if self.symmetric else (0, 0)
        padded = x if self.symmetric else F.pad(x, self.pad)
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


class StaticSamePool(nn.Module):
    """A pooling layer whose "same" padding is a constant, for the same reason.

    Besides, the dynamic rule computes with sizes in floating point, which TensorRT wants in one precision and
    lowering would make half.

    Args:
        pool: timm's layer.
    """

    def __init__(self, pool: AvgPool2dSame | MaxPool2dSame) -> None:
        super().__init__()
        self.kernel, self.stride = to_2tuple(pool.kernel_size), to_2tuple(pool.stride)
        self.is_max = isinstance(pool, MaxPool2dSame)
        self.dilation = to_2tuple(pool.dilation) if isinstance(pool, MaxPool2dSame) else (1, 1)
        (top, bottom), (left, right) = (
            same_padding(self.kernel[i], self.stride[i], self.dilation[i]) for i in (0, 1)
        )
        self.pad = (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C, Y / stride, X / stride)."""
        if self.is_max:
            padded = F.pad(x, self.pad, value=-torch.inf)
            return F.max_pool2d(padded, self.kernel, self.stride, 0, self.dilation)
        # timm's layer too counts the padding as zeros, whatever its count_include_pad says
        return F.avg_pool2d(F.pad(x, self.pad), self.kernel, self.stride)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, StaticSameConv(child))
        elif isinstance(child, (AvgPool2dSame, MaxPool2dSame)):
            setattr(module, name, StaticSamePool(child))
        else:
            _replace(child)


@torch.no_grad()
def bake_position_embedding(transformer: VisionTransformer, height: int, width: int) -> None:
    """Resample the position embedding once, for one (padded) image size in pixels.

    The dynamic rule is an antialiased bicubic resize inside the graph, which TensorRT does not have.
    """
    patch = transformer.patch_embed
    grid = patch.dynamic_feat_size((height, width))
    prefix = 0 if transformer.no_embed_class else transformer.num_prefix_tokens
    baked = resample_abs_pos_embed(
        transformer.pos_embed, new_size=list(grid), old_size=list(patch.grid_size), num_prefix_tokens=prefix
    )
    transformer.pos_embed = nn.Parameter(baked.clone(), requires_grad=False)
    vars(transformer)["dynamic_img_size"] = False  # declared Final for TorchScript
    patch.flatten, patch.strict_img_size = True, False


def prepare_network(segmenter: Segmenter, static: tuple[int, int, int] | None = None) -> Segmenter:
    """A copy in eval mode that traces to a small graph.

    Args:
        segmenter: Network and prototypes.
        static: Fixed (batch, height, width), which vision transformers need.
    """
    prepared = copy.deepcopy(segmenter).eval()
    _replace(prepared)
    for module in prepared.modules():
        if isinstance(module, VisionTransformer) and module.dynamic_img_size and static is not None:
            bake_position_embedding(module, *prepared.network.padded_size(*static[1:]))
    return prepared
