"""Depthwise convolutions with a backward pass of their own: the same values and gradients."""

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from protoseg.models.depthwise import cheap_depthwise

# channels, map, kernel, stride, dilation; the last ones see little but padding
GEOMETRIES = [
    (6, 12, 5, 1, 1),
    (6, 12, 5, 1, 2),
    (4, 40, 3, 1, 1),
    (4, 13, 3, 2, 1),
    (5, 12, 3, 1, 12),
    (5, 12, 5, 1, 6),
]


def passed(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Result, gradient of the map, gradient of the weights."""
    x = x.clone().requires_grad_()
    result = layer(x)
    result.backward(gradient)
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return [result.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("channels", "size", "kernel", "stride", "dilation"), GEOMETRIES)
def test_values_and_gradients_are_those_of_torch(
    channels: int, size: int, kernel: int, stride: int, dilation: int, same: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    kind = Conv2dSame if same else nn.Conv2d
    padding = 0 if same else dilation * (kernel // 2)
    layer = kind(channels, channels, kernel, stride, padding, dilation, channels, bias=False)
    cheap = nn.Sequential(copy.deepcopy(layer))
    cheap_depthwise(cheap)
    assert type(cheap[0]) is not kind
    x = torch.randn(2, channels, size, size + 3).contiguous(memory_format=layout)
    gradient = torch.randn_like(layer(x))
    for own, wanted in zip(passed(cheap, x, gradient), passed(layer, x, gradient), strict=True):
        assert own.shape == wanted.shape
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(cheap(x), layer(x), rtol=1e-5, atol=1e-5)


def test_half_precision_sums_in_float() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6, bias=False)
    cheap = nn.Sequential(copy.deepcopy(layer))
    cheap_depthwise(cheap)
    x, gradient = torch.randn(2, 6, 24, 24).bfloat16(), torch.randn(2, 6, 24, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = cheap(x)
    result.backward(gradient)
    assert result.dtype == torch.bfloat16
    wanted = passed(layer, x.float(), gradient.float())[2]
    torch.testing.assert_close(cheap[0].weight.grad, wanted, rtol=1e-4, atol=1e-3)


def test_other_convolutions_and_names_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=8, bias=False)
    )
    before = list(network.state_dict())
    cheap_depthwise(network)
    assert [type(layer) is nn.Conv2d for layer in network] == [True, True, False]
    assert list(network.state_dict()) == before
    assert type(copy.deepcopy(network)[2]) is type(network[2])
