"""Small real bundles for tests and benchmarks of the service, made with ``onnx.helper`` only.

The network names the nearest of five colours after average pooling, so that a test knows the right
answer; ``width`` adds a stack of convolutions whose cost (not whose result) matters.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from protoseg.files import sha256_file
from protoseg.manifest import (
    MANIFEST_NAME,
    ArtifactFile,
    Baseline,
    ClassInfo,
    GraphSettings,
    InputRule,
    Manifest,
    ParityCase,
    ParityReport,
    ResizeConfig,
    Sample,
    TensorInfo,
)

COLORS = ((0, 0, 0), (220, 40, 40), (40, 200, 60), (50, 80, 230), (245, 245, 245))
NAMES = ("background", "red", "green", "blue", "white")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STRIDE = 4
MULTIPLE = 16
Layout = Literal["uint8_nchw", "uint8_nhwc", "float32_nchw"]
NodeList = list[onnx.NodeProto]


class _Graph:
    """Collects nodes and constants under short names."""

    def __init__(self) -> None:
        self.nodes: NodeList = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _color_head(scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of the linear map whose largest output is the nearest colour."""
    colors = np.asarray(COLORS, np.float64) / 255
    mean, std = np.asarray(MEAN), np.asarray(STD)
    weight = 2 * colors * std  # acts on normalised input: x = z * std + mean
    bias = 2 * colors @ mean - (colors**2).sum(1)
    return (
        (scale * weight).astype(np.float32)[:, :, None, None],
        (scale * bias).astype(np.float32),
    )


def _normalise_and_pad(g: _Graph, layout: Layout) -> str:
    x = "image"
    if layout == "uint8_nhwc":
        x = g.add("Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    if layout != "float32_nchw":
        x = g.add("Cast", [x], "as_float", to=TensorProto.FLOAT)
    shift = 255 * np.asarray(MEAN, np.float32)[None, :, None, None]
    factor = (1 / (255 * np.asarray(STD, np.float32)))[None, :, None, None]
    x = g.add("Sub", [x, g.constant("shift", shift)], "centred")
    x = g.add("Mul", [x, g.constant("factor", factor.astype(np.float32))], "normalised")
    g.add("Shape", [x], "size", start=2, end=4)
    multiple = g.constant("multiple", np.asarray([MULTIPLE, MULTIPLE], np.int64))
    g.add("Sub", [g.constant("zero2", np.zeros(2, np.int64)), "size"], "minus")
    g.add("Mod", ["minus", multiple], "missing")
    g.add("Concat", [g.constant("zero6", np.zeros(6, np.int64)), "missing"], "pads", axis=0)
    return g.add("Pad", [x, "pads"], "padded")


def _heavy_path(g: _Graph, x: str, width: int, depth: int) -> str:
    rng = np.random.default_rng(0)

    def conv(source: str, name: str, inputs: int, outputs: int, stride: int, kernel: int) -> str:
        scale = np.sqrt(2 / (inputs * kernel * kernel))
        weight = rng.normal(0, scale, (outputs, inputs, kernel, kernel)).astype(np.float32)
        return g.add(
            "Conv", [source, g.constant(f"{name}_w", weight)], name,
            strides=[stride, stride], pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel],
        )  # fmt: skip

    x = g.add("Relu", [conv(x, "stem", 3, width, 2, 3)], "stem_relu")
    x = g.add("Relu", [conv(x, "down", width, 2 * width, 2, 3)], "down_relu")
    for index in range(depth):
        x = g.add("Relu", [conv(x, f"block{index}", 2 * width, 2 * width, 1, 3)], f"relu{index}")
    x = conv(x, "heavy", 2 * width, len(COLORS), 1, 1)
    return g.add("Mul", [x, g.constant("tiny", np.asarray(1e-6, np.float32))], "heavy_tiny")


def _head(g: _Graph, name: str, source: str, scale: float, extra: str | None) -> tuple[str, str]:
    weight, bias = _color_head(scale)
    inputs = [source, g.constant(f"{name}_w", weight), g.constant(f"{name}_b", bias)]
    stride = g.add("Conv", inputs, f"{name}_plain", kernel_shape=[1, 1])
    if extra is not None:
        stride = g.add("Add", [stride, extra], f"{name}_sum")
    scales = g.constant(f"{name}_scales", np.asarray([1, 1, STRIDE, STRIDE], np.float32))
    full = g.add(
        "Resize", [stride, "", scales], f"{name}_full", mode="linear",
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    starts, axes = np.zeros(2, np.int64), np.asarray([2, 3], np.int64)
    g.constant(f"{name}_starts", starts)
    g.constant(f"{name}_axes", axes)
    cropped = g.add("Slice", [full, f"{name}_starts", "size", f"{name}_axes"], f"{name}_logits")
    return stride, cropped


def _largest_probability(g: _Graph, logits: str, output: str) -> None:
    """Max softmax = 1 / sum(exp(x - max x)); ONNX Runtime's Softmax over axis 1 costs six times this."""
    axis = g.constant(f"{output}_axis", np.asarray([1], np.int64))
    g.add("ReduceMax", [logits, axis], f"{output}_max", keepdims=1)
    g.add("Sub", [logits, f"{output}_max"], f"{output}_shifted")
    g.add("Exp", [f"{output}_shifted"], f"{output}_exp")
    g.add("ReduceSum", [f"{output}_exp", axis], f"{output}_sum", keepdims=0)
    g.add("Reciprocal", [f"{output}_sum"], output)


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
        outputs: Graph outputs out of labels, confidence, agreement, logits and logits_stride.
        layout: Element type and axes of the input ``image``.
        static_shape: Fixed (batch, height, width), or None for dynamic axes.
        width: Channels of the costly path; 0 leaves it out.
        depth: 3x3 convolutions at stride 4 of the costly path.
    """
    g = _Graph()
    padded = _normalise_and_pad(g, layout)
    pooled = g.add("AveragePool", [padded], "pooled", kernel_shape=[STRIDE, STRIDE], strides=[STRIDE, STRIDE])
    extra = _heavy_path(g, padded, width, depth) if width else None
    stride, logits = _head(g, "linear", pooled, 30.0, extra)
    if "labels" in outputs:
        g.add("ArgMax", [logits], "argmax", axis=1, keepdims=0)
        g.add("Cast", ["argmax"], "labels", to=TensorProto.UINT8)
    if "confidence" in outputs:
        _largest_probability(g, logits, "confidence")
    if "agreement" in outputs:
        _, other = _head(g, "prototype", pooled, 20.0, None)
        _largest_probability(g, other, "agreement")
    if "logits" in outputs:
        g.add("Identity", [logits], "logits")
    if "logits_stride" in outputs:
        g.add("Identity", [stride], "logits_stride")
    batch, height, columns = static_shape or ("batch", "height", "width")
    axes: list[Any] = [batch, height, columns]
    shape = [*axes, 3] if layout == "uint8_nhwc" else [batch, 3, height, columns]
    kind = TensorProto.FLOAT if layout == "float32_nchw" else TensorProto.UINT8
    shapes: dict[str, tuple[int, list[Any]]] = {
        "labels": (TensorProto.UINT8, axes),
        "confidence": (TensorProto.FLOAT, axes),
        "agreement": (TensorProto.FLOAT, axes),
        "logits": (TensorProto.FLOAT, [batch, len(COLORS), height, columns]),
        "logits_stride": (TensorProto.FLOAT, [batch, len(COLORS), "rows_stride", "columns_stride"]),
    }
    graph = helper.make_graph(
        g.nodes, "nearest_color",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(name, *shapes[name]) for name in outputs],
        g.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
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


def _tensor_infos(values: Any) -> list[TensorInfo]:
    kinds = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}
    infos = []
    for value in values:
        tensor = value.type.tensor_type
        shape: list[int | str] = [d.dim_param or int(d.dim_value) for d in tensor.shape.dim]
        infos.append(TensorInfo(name=value.name, dtype=kinds[tensor.elem_type], shape=shape))
    return infos


def _run(model: Path, image: NDArray[np.uint8], layout: Layout) -> dict[str, NDArray[Any]]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0].shape[0]
    batch: NDArray[Any] = np.repeat(image[None], first if isinstance(first, int) else 1, axis=0)
    if layout != "uint8_nhwc":
        batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    if layout == "float32_nchw":
        batch = batch.astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def _baseline(folder: Path, layout: Layout, size: tuple[int, int]) -> Baseline:
    counts, histogram, total = np.zeros(len(NAMES)), np.zeros(10), 0.0
    for seed in range(4):
        result = _run(folder / "model.onnx", sample_image(*size, seed), layout)
        counts += np.bincount(result["labels"].ravel(), minlength=len(NAMES))
        histogram += np.histogram(result["confidence"], 10, (0, 1))[0]
        total += float(result["confidence"].mean()) / 4
    return Baseline(
        class_fractions=(counts / counts.sum()).tolist(),
        confidence_histogram=(histogram / histogram.sum()).tolist(),
        mean_confidence=total,
        images=4,
    )


def _artifact(
    bundle: Path,
    name: str,
    layout: Layout,
    image: NDArray[np.uint8],
    expected: dict[str, NDArray[Any]],
    cut_of: str | None = None,
) -> ArtifactFile:
    """The record of a graph, with what it gives for ``image`` against ``expected``."""
    path = bundle / name
    graph = onnx.load(path).graph
    equal = [np.mean(value == expected[key]) for key, value in _run(path, image, layout).items()]
    case = ParityCase(
        reference=cut_of or "onnxruntime", runtime="onnxruntime", inputs=1, pixels=image[..., 0].size,
        metrics={"equal": float(min(equal))}, gates={"equal": 1.0}, failures=[],
    )  # fmt: skip
    return ArtifactFile(
        name=name, sha256=sha256_file(path), size=path.stat().st_size, kind="onnx", precision="fp32",
        opset=18, inputs=_tensor_infos(graph.input), outputs=_tensor_infos(graph.output), cut_of=cut_of,
        parity=ParityReport(status="passed" if min(equal) == 1 else "failed", cases=[case]),
    )  # fmt: skip


def make_bundle(
    folder: str | Path,
    *,
    outputs: tuple[str, ...] = ("labels", "confidence", "agreement"),
    layout: Layout = "uint8_nchw",
    static_shape: tuple[int, int, int] | None = None,
    width: int = 0,
    depth: int = 2,
    resize: ResizeConfig | None = None,
    crop: tuple[int, int] = (96, 128),
    version: str = "1",
    created: str | None = None,
    cuts: bool = True,
) -> Path:
    """Write a servable bundle and return its folder; without ``cuts`` as exports of 0.1 did."""
    bundle = Path(folder)
    (bundle / "samples").mkdir(parents=True, exist_ok=True)
    options = {"layout": layout, "static_shape": static_shape, "width": width, "depth": depth}
    onnx.save(build_model(outputs, **options), bundle / "model.onnx")
    size = static_shape[1:] if static_shape else crop
    image = sample_image(*size, seed=99)
    expected = _run(bundle / "model.onnx", image, layout)
    labels = expected["labels"][0]
    Image.fromarray(image).save(bundle / "samples" / "0.png")
    Image.fromarray(labels).save(bundle / "samples" / "0_labels.png")
    files = ("samples/0.png", "samples/0_labels.png")
    written = [_artifact(bundle, "model.onnx", layout, image, expected)]
    for name in ("labels", "logits_stride") if cuts else ():
        if name in outputs and outputs != (name,):
            onnx.save(build_model((name,), **options), bundle / f"model.{name}.onnx")
            written.append(_artifact(bundle, f"model.{name}.onnx", layout, image, expected, "model.onnx"))
    manifest = Manifest(
        name="nearest-color", version=version,
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        checkpoint_sha256="0" * 64,
        classes=[ClassInfo(name=n, color=c) for n, c in zip(NAMES, COLORS, strict=True)],
        ignore_index=255,
        input=InputRule(
            channels=3, mean=list(MEAN), std=list(STD), stride_multiple=MULTIPLE,
            resize=resize or ResizeConfig(), crop=crop,
        ),
        graph=GraphSettings(
            head="linear", input_layout=layout, static_shape=static_shape,
            decoder_stride=STRIDE, prototypes=1,
        ),
        files=written,
        samples=[
            Sample(image=files[0], labels=files[1],
                   sha256={name: sha256_file(bundle / name) for name in files})
        ],
        baseline=_baseline(bundle, layout, size) if "confidence" in outputs else None,
        training_metrics={"val/miou": 1.0}, versions={"onnx": onnx.__version__},
    )  # fmt: skip
    (bundle / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return bundle


def main(argv: list[str] | None = None) -> int:
    """Write a bundle from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="bundle folder to write")
    parser.add_argument("--width", type=int, default=0, help="channels of the costly path (0: none)")
    parser.add_argument("--depth", type=int, default=2, help="convolutions of the costly path")
    args = parser.parse_args(argv)
    print(make_bundle(args.folder, width=args.width, depth=args.depth, crop=(512, 512)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
