"""Small real bundles of the nearest-colour network, for tests and benchmarks of the service."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import parser
from benchmarks.nearest_color import COLORS, MEAN, MULTIPLE, NAMES, STD, STRIDE, build_model, sample_image
from export.graph.edit import tensor_infos
from export.runners.contract import Layout, adapt
from export.runners.ort import OrtRunner
from protoseg.explain.atlas import ATLAS_DIR, ATLAS_NAME, Atlas, Patch, Prototype, encode_strip, write_atlas
from protoseg.files import sha256_file
from protoseg.input_rule import InputRule, ResizeConfig
from protoseg.manifest import (
    MANIFEST_NAME,
    ArtifactFile,
    AtlasFiles,
    Baseline,
    ClassInfo,
    GraphSettings,
    Manifest,
    ParityCase,
    ParityReport,
    Sample,
)


def _run(model: Path, image: NDArray[np.uint8], layout: Layout) -> dict[str, NDArray[Any]]:
    with OrtRunner(model) as runner:
        first = runner.inputs[0].shape[0]
        batch = np.repeat(image.transpose(2, 0, 1)[None], first if isinstance(first, int) else 1, axis=0)
        return runner(adapt(batch, layout))


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
        opset=18, inputs=tensor_infos(graph.input), outputs=tensor_infos(graph.output), cut_of=cut_of,
        parity=ParityReport(status="passed" if min(equal) == 1 else "failed", cases=[case]),
    )  # fmt: skip


def _atlas(bundle: Path) -> AtlasFiles:
    patches = [
        Patch(image=f"train/{n}.png", y=8, x=8, box=(0, 0, 16, 16), cosine=0.9, label=None) for n in range(2)
    ]
    prototypes = [
        Prototype(index=i, class_id=i, number=0, use_share=1.0, precision=1.0, doubts=[], patches=patches,
                  strip=f"{i:04d}.jpg")
        for i in range(len(NAMES))
    ]  # fmt: skip
    atlas = Atlas(
        name="nearest-color", step=1, weights_sha256="0" * 64, classes=list(NAMES), num_prototypes=1,
        num_images=2, patch=16, side=32, prototypes=prototypes,
    )  # fmt: skip
    strips = {
        item.strip: encode_strip([Image.new("RGB", (32, 32), COLORS[item.index])] * 2, 32, 90)
        for item in prototypes
    }
    folder = bundle / ATLAS_DIR
    folder.mkdir()
    write_atlas(folder, atlas, strips)
    names = [f"{ATLAS_DIR}/{name}" for name in (ATLAS_NAME, *strips)]
    return AtlasFiles(folder=ATLAS_DIR, sha256={name: sha256_file(bundle / name) for name in names})


def _sample(bundle: Path, image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Sample:
    (bundle / "samples").mkdir(exist_ok=True)
    files = ("samples/0.png", "samples/0_labels.png")
    for name, pixels in zip(files, (image, labels), strict=True):
        Image.fromarray(pixels).save(bundle / name)
    return Sample(
        image=files[0], labels=files[1], sha256={name: sha256_file(bundle / name) for name in files}
    )


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
    explains: bool = False,
) -> Path:
    """Write a servable bundle and return its folder; without ``cuts`` as exports of 0.1 did.

    With ``explains`` it has an atlas: a prototype for each class, with two patches of its colour.
    """
    bundle = Path(folder)
    if explains:
        outputs = (*outputs, "prototype", "similarity")
    bundle.mkdir(parents=True, exist_ok=True)
    options = {"layout": layout, "static_shape": static_shape, "width": width, "depth": depth}
    onnx.save(build_model(outputs, **options), bundle / "model.onnx")
    size = static_shape[1:] if static_shape else crop
    image = sample_image(*size, seed=99)
    expected = _run(bundle / "model.onnx", image, layout)
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
        samples=[_sample(bundle, image, expected["labels"][0])],
        baseline=_baseline(bundle, layout, size) if "confidence" in outputs else None,
        training_metrics={"val/miou": 1.0}, versions={"onnx": onnx.__version__},
        atlas=_atlas(bundle) if explains else None,
    )  # fmt: skip
    (bundle / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return bundle


def main(argv: list[str] | None = None) -> int:
    """Write a bundle from the command line."""
    command = parser(__doc__)
    command.add_argument("folder", help="bundle folder to write")
    command.add_argument("--width", type=int, default=0, help="channels of the costly path (0: none)")
    command.add_argument("--depth", type=int, default=2, help="convolutions of the costly path")
    args = command.parse_args(argv)
    print(make_bundle(args.folder, width=args.width, depth=args.depth, crop=(512, 512)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
