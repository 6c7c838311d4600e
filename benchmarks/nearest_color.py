"""A network that names the nearest of five colours after average pooling, and images for it.

Tests know its right answer. ``width`` adds a stack of convolutions whose cost (not whose result) matters.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from export.runners.contract import Layout

COLORS = ((0, 0, 0), (220, 40, 40), (40, 200, 60), (50, 80, 230), (245, 245, 245))
NAMES = ("background", "red", "green", "blue", "white")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STRIDE = 4
MULTIPLE = 16
# the network in the textual form of ONNX, without its constants
LAYOUTS: dict[Layout, tuple[str, str]] = {
    "uint8_nchw": ("uint8[{0}, 3, {1}, {2}]", "pixels = Cast <to = 1> (image)"),
    "uint8_nhwc": (
        "uint8[{0}, {1}, {2}, 3]", "nchw = Transpose <perm = [0, 3, 1, 2]> (image) "
        "pixels = Cast <to = 1> (nchw)",
    ),
    "float32_nchw": ("float[{0}, 3, {1}, {2}]", "pixels = Identity (image)"),
}  # fmt: skip
NORMALISE_PAD_POOL = """
    centred = Sub (pixels, shift)
    normalised = Mul (centred, factor)
    size = Shape <start = 2, end = 4> (normalised)
    minus = Sub (zero2, size)
    missing = Mod (minus, multiple)
    pads = Concat <axis = 0> (zero6, missing)
    padded = Pad (normalised, pads)
    pooled = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (padded)
"""
HEAD = """
    NAME_plain = Conv (pooled, NAME_w, NAME_b)
    NAME_stride = Add (NAME_plain, extra)
    NAME_full = Resize <mode = "linear"> (NAME_stride, , scales)
    NAME_logits = Slice (NAME_full, zero2, size, rows_columns)
"""
# max softmax = 1 / sum(exp(x - max x)); ONNX Runtime's Softmax over axis 1 costs six times this
LARGEST_PROBABILITY = """
    OUTPUT_max = ReduceMax <keepdims = 1> (NAME_logits, classes)
    OUTPUT_shifted = Sub (NAME_logits, OUTPUT_max)
    OUTPUT_exp = Exp (OUTPUT_shifted)
    OUTPUT_sum = ReduceSum <keepdims = 0> (OUTPUT_exp, classes)
    OUTPUT = Reciprocal (OUTPUT_sum)
"""
AXES = "{0}, {1}, {2}"
OUTPUTS = {
    "labels": (
        f"uint8[{AXES}]",
        "argmax = ArgMax <axis = 1, keepdims = 0> (linear_logits) labels = Cast <to = 2> (argmax)",
    ),
    "confidence": (
        f"float[{AXES}]", LARGEST_PROBABILITY.replace("NAME", "linear").replace("OUTPUT", "confidence"),
    ),
    "agreement": (
        f"float[{AXES}]",
        (HEAD.replace("extra", "nothing") + LARGEST_PROBABILITY.replace("OUTPUT", "agreement")).replace(
            "NAME", "prototype"
        ),
    ),
    # far from every colour of the network
    "novelty": (
        f"float[{AXES}]",
        LARGEST_PROBABILITY.replace("NAME", "linear").replace("OUTPUT", "known")
        + "doubled = Add (known, known) close = Min (doubled, one) novelty = Sub (one, close)",
    ),
    "logits": ("float[{0}, 5, {1}, {2}]", "logits = Identity (linear_logits)"),
    "logits_stride": (
        "float[{0}, 5, rows_stride, columns_stride]", "logits_stride = Identity (linear_stride)",
    ),
    "prototype": (
        "uint8[{0}, rows_stride, columns_stride]",
        "nearest = ArgMax <axis = 1, keepdims = 0> (linear_stride) prototype = Cast <to = 2> (nearest)",
    ),
    # no cosine, but as large where the colour is near
    "similarity": (
        "float[{0}, 5, rows_stride, columns_stride]", "similarity = Softmax <axis = 1> (linear_stride)",
    ),
}  # fmt: skip


def _constants() -> dict[str, NDArray[Any]]:
    """Constants of the network by name; a head's largest output is that of the nearest colour."""
    colors, mean, std = np.asarray(COLORS) / 255, np.asarray(MEAN), np.asarray(STD)
    # acts on normalised input: x = z * std + mean
    weight, bias = 2 * colors * std, 2 * colors @ mean - (colors**2).sum(1)
    heads = {"linear": 30.0, "prototype": 20.0}
    return {
        "shift": 255 * np.asarray(MEAN, np.float32)[None, :, None, None],
        "factor": (1 / (255 * np.asarray(STD, np.float32)))[None, :, None, None].astype(np.float32),
        "multiple": np.full(2, MULTIPLE), "zero2": np.zeros(2, np.int64), "zero6": np.zeros(6, np.int64),
        "scales": np.asarray([1, 1, STRIDE, STRIDE], np.float32), "rows_columns": np.asarray([2, 3]),
        "classes": np.asarray([1]), "nothing": np.zeros(1, np.float32), "tiny": np.asarray(1e-6, np.float32),
        "one": np.asarray(1, np.float32),
        **{f"{name}_w": (k * weight).astype(np.float32)[..., None, None] for name, k in heads.items()},
        **{f"{name}_b": (k * bias).astype(np.float32) for name, k in heads.items()},
    }  # fmt: skip


def _heavy_path(width: int, depth: int) -> tuple[str, dict[str, NDArray[Any]]]:
    """Convolutions whose result hardly counts, as text, and their weights."""
    rng, lines, weights = np.random.default_rng(0), [], {}
    channels = [3, width, *[2 * width] * (depth + 1), len(COLORS)]
    source = "padded"
    for index, (before, after) in enumerate(pairwise(channels)):
        kernel, stride = (1 if index == depth + 2 else 3), (2 if index < 2 else 1)
        scale = np.sqrt(2 / (before * kernel * kernel))
        weights[f"w{index}"] = rng.normal(0, scale, (after, before, kernel, kernel)).astype(np.float32)
        pads = [kernel // 2] * 4
        lines.append(f"conv{index} = Conv <strides = {[stride] * 2}, pads = {pads}> ({source}, w{index})")
        source = f"relu{index}"
        lines.append(f"{source} = Relu (conv{index})")
    return "\n".join([*lines[:-1], f"extra = Mul (conv{index}, tiny)"]), weights


def build_model(
    outputs: tuple[str, ...] = ("labels", "confidence", "agreement"),
    *,
    layout: Layout = "uint8_nchw",
    static_shape: tuple[int, int, int] | None = None,
    width: int = 0,
    depth: int = 2,
) -> onnx.ModelProto:
    """The nearest-colour network.

    Args:
        outputs: Graph outputs out of those of ``OUTPUTS``.
        layout: Element type and axes of the input ``image``.
        static_shape: Fixed (batch, height, width), or None for dynamic axes.
        width: Channels of the costly path; 0 leaves it out.
        depth: 3x3 convolutions at stride 4 of the costly path.
    """
    axes = static_shape or ("batch", "height", "width")
    kind, pixels = LAYOUTS[layout]
    heavy, weights = _heavy_path(width, depth) if width else ("extra = Identity (nothing)", {})
    nodes = [pixels, NORMALISE_PAD_POOL, heavy, HEAD.replace("NAME", "linear")]
    nodes += [OUTPUTS[name][1] for name in outputs]
    shapes = ", ".join(f"{OUTPUTS[name][0].format(*axes)} {name}" for name in outputs)
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> nearest_color ({kind.format(*axes)} image) => ({shapes}) '
        f"{{ {' '.join(nodes)} }}"
    )
    used = {name for node in model.graph.node for name in node.input}
    constants = _constants() | weights
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(model)
    return model


def sample_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rectangles of the five colours with noise, HWC uint8 RGB."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.int16)
    for _ in range(8):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        bottom, right = top + height // 3 + 1, left + width // 3 + 1
        image[top:bottom, left:right] = COLORS[int(rng.integers(1, 5))]
    image += rng.integers(-12, 13, image.shape, dtype=np.int16)
    return image.clip(0, 255).astype(np.uint8)


def encode(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()
