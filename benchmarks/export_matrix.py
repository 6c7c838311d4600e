"""Network x precision x runtime: what exports, what passes parity, what TensorRT-RTX builds.

Each network is trained for a few dozen steps on the embedded data: its label maps are poor and far from
trivial, which is what parity needs. Writes ``results/export_matrix.json`` after every
network; with ``--only`` the rows of other networks stay. Example::

    python -m benchmarks.export_matrix --only deeplabv3plus,unet
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import (
    EXPORT,
    RESULTS,
    ROOT,
    Answer,
    Block,
    Result,
    machine,
    markdown_table,
    write_result,
)
from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.data.synthetic import SyntheticScenes, synthetic_classes
from protoseg.errors import ExportError
from protoseg.manifest import ArtifactFile, InputRule, Precision, read_manifest

if TYPE_CHECKING:  # the table needs no torch
    from protoseg.models.segmenter import Segmenter

NETWORKS: dict[str, tuple[str, list[str], int]] = {
    "deeplabv3plus": ("DeepLabV3+, EfficientNet-Lite0", ["model.pretrained=package"], 100),
    "pcr_resnet101": ("PCR decoder, ResNet-101 (`pcr_resnet101`)", ["model.preset=pcr_resnet101"], 60),
    "unet": ("UNet, ResNet-18", ["model.architecture=unet", "model.encoder=resnet18"], 80),
    "fpn": ("FPN, ResNet-18", ["model.architecture=fpn", "model.encoder=resnet18"], 80),
    "segformer": (
        "SegFormer decoder, EfficientNet-Lite0",
        ["model.architecture=segformer", "model.pretrained=package"],
        100,
    ),
    "upernet": ("UPerNet, ResNet-18", ["model.architecture=upernet", "model.encoder=resnet18"], 80),
    "dinov2_dpt": ("DPT, DINOv2 ViT-S/14 (`dinov2_small_dpt`)", ["model.preset=dinov2_small_dpt"], 80),
}  # fmt: skip
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-cpu")
RESULT = "export_matrix"
NO_GPU = "not run: no GPU"
CROP = (96, 128)
TRAIN_CROP = (64, 96)


def train(segmenter: Segmenter, config: Config, steps: int) -> None:
    """A short supervised training and k-means prototypes on embedded scenes."""
    import torch
    import torch.nn.functional as F

    from protoseg.models.kmeans import spherical_kmeans

    scenes = SyntheticScenes(config.data.synthetic, "labeled")
    images = torch.from_numpy(np.stack([scenes.image(i) for i in range(len(scenes))])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([scenes.mask(i) for i in range(len(scenes))])).long()
    classes = config.data.synthetic.num_classes
    network = segmenter.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    weight = torch.tensor([1.0] + [3.0] * (classes - 1))
    for _ in range(steps):
        index = torch.randint(0, len(images), (4,))
        top = int(torch.randint(0, images.shape[2] - TRAIN_CROP[0] + 1, ()))
        left = int(torch.randint(0, images.shape[3] - TRAIN_CROP[1] + 1, ()))
        rows, columns = slice(top, top + TRAIN_CROP[0]), slice(left, left + TRAIN_CROP[1])
        logits = network.upsample(network(images[index][..., rows, columns]).linear_logits, *TRAIN_CROP)
        target = masks[index][:, rows, columns]
        loss = F.cross_entropy(logits, target, ignore_index=255, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    segmenter.eval()
    with torch.no_grad():
        features = torch.cat([network(image[None]).features for image in images]).permute(0, 2, 3, 1)
        small = F.interpolate(masks[:, None].float(), size=features.shape[1:3])[:, 0]
        generator = torch.Generator().manual_seed(0)
        count = config.prototypes.num_prototypes
        present = [c for c in range(classes) if (small == c).any()]
        segmenter.bank.start(
            {c: spherical_kmeans(features[small == c][:1000], count, generator) for c in present}
        )


def make_checkpoint(folder: Path, overrides: list[str], steps: int) -> Path:
    """A checkpoint of a briefly trained network."""
    import torch

    from protoseg.checkpoint import CheckpointInfo, package_versions, save_checkpoint
    from protoseg.models.segmenter import build_segmenter

    torch.manual_seed(0)
    config = load_config(None, [f"views.crop=[{CROP[0]},{CROP[1]}]", *overrides])
    classes = synthetic_classes(config.data.synthetic)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=len(classes))
    train(segmenter, config, steps)
    network = segmenter.network
    info = CheckpointInfo(
        name="matrix", step=0, model=config.model, prototypes=config.prototypes, classes=classes,
        ignore_index=255,
        input=InputRule(
            channels=3, mean=(network.mean.flatten() / 255).tolist(),
            std=(network.std.flatten() / 255).tolist(), stride_multiple=network.stride_multiple,
            resize=config.data.resize, crop=CROP,
        ),
        data=config.data, eval=config.eval, data_hashes={}, metrics={}, method="none", weights_sha256="",
        versions=package_versions(), git_revision=None,
    )  # fmt: skip
    save_checkpoint(folder / "checkpoint", segmenter, info)
    return folder


def build_rtx(bundle: Path, precision: str) -> str:
    """Build with TensorRT-RTX in a process of its own; ``built in X s`` or the reason."""
    command = [sys.executable, "-m", "export.tensorrt", str(bundle), "--flavor", "rtx",
               "--precision", precision, "--no-cache"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        item = read_manifest(bundle).files[-1]
        return f"built ({item.size / 1e6:.1f} MB)"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]


def largest(item: ArtifactFile) -> float | None:
    """Largest logit difference from torch over the logit range."""
    metrics = item.parity.cases[0].metrics if item.parity.cases else {}
    ratios = [
        (metrics[f"{head}/max_logit_diff"] or 0) / (metrics[f"{head}/logit_range"] or 1)
        for head in ("linear", "prototype")
        if f"{head}/max_logit_diff" in metrics
    ]
    return max(ratios, default=None)


def measure(name: str, folder: Path, precisions: tuple[Precision, ...]) -> dict[str, Any]:
    """One row: export, parity of every precision, RTX builds."""
    import torch

    from export.graph.trace import ExportSettings
    from export.onnx import export_bundle
    from protoseg.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    title, overrides, steps = NETWORKS[name]
    start = time.perf_counter()
    checkpoint = load_checkpoint(make_checkpoint(folder / name, overrides, steps))
    row: dict[str, Any] = {
        "network": title,
        "parameters": sum(p.numel() for p in checkpoint.segmenter.parameters()),
        "files": {},
        "rtx": {},
    }
    settings = ExportSettings(precisions=precisions, num_calibration=16)
    try:
        bundle, manifest = export_bundle(checkpoint, folder / name / "bundle", settings)
    except ExportError as error:
        print(f"{name}: {error}", flush=True)
        return {**row, "error": str(error)}
    row["static_shape"] = manifest.graph.static_shape
    for item in (f for f in manifest.files if f.cut_of is None):
        metrics = item.parity.cases[0].metrics
        row["files"][item.precision] = {
            "status": item.parity.status, "reason": item.parity.reason,
            "megabytes": round(item.size / 1e6, 1),
            "relative_logit_diff": largest(item), "equal_labels": metrics["labels/equal_labels"],
        }  # fmt: skip
    for precision in [p for p in PRECISIONS[:3] if p in precisions]:
        passed = row["files"][precision]["status"] == "passed"
        row["rtx"][precision] = build_rtx(bundle, precision) if passed else "not built: parity did not pass"
    row["seconds"] = round(time.perf_counter() - start, 1)
    # rows may come from several calls
    return {**row, "processor": machine()["processor"], "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def cell(row: dict[str, Any], precision: str) -> str:
    """Parity of one precision for the table."""
    entry = row["files"].get(precision)
    if entry is None:
        return "no" if "error" in row else "not run"
    if entry["status"] != "passed":
        return str(entry["status"])
    if precision in ("fp32", "fp16"):
        return f"passed ({entry['relative_logit_diff']:.0e})"
    return f"passed ({entry['equal_labels']:.3f})"


def table(result: Result) -> str:
    """The rows as Markdown."""
    head = ("Network", "Shape", "ORT CPU fp32", "ORT CPU fp16", "ORT CPU int8", "ORT CPU int8-cpu",
            "RTX fp32", "RTX fp16", "RTX int8", "ORT CUDA, TensorRT")  # fmt: skip
    rows = []
    for row in result["rows"].values():
        static = row.get("static_shape")
        shape = "x".join(map(str, static)) if static else "dynamic"
        rtx = [
            row["rtx"].get(p, "no" if "error" in row else "not run").split(" (")[0] for p in PRECISIONS[:3]
        ]
        rows.append([row["network"], shape, *(cell(row, p) for p in PRECISIONS), *rtx, result["gpu"]])
    return markdown_table(head, rows)


ANSWERS = {
    RESULT: Answer(
        "which network, precision and runtime passes parity",
        "python -m benchmarks.export_matrix",
        in_parts=True,
    )
}
BLOCKS = {RESULT: Block(table, (RESULT,), ("torch", *EXPORT[1:]))}


def earlier_rows(path: Path = RESULTS / f"{RESULT}.json") -> dict[str, dict[str, Any]]:
    """Rows of earlier calls by network, empty when there is no result file."""
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {name: row for name, row in rows.items() if name in NETWORKS}


def parse_names(text: str) -> list[str]:
    """A comma-separated list of networks.

    Raises:
        argparse.ArgumentTypeError: If one is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NETWORKS:
            raise argparse.ArgumentTypeError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    return names


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """A comma-separated list of precisions.

    Raises:
        argparse.ArgumentTypeError: If one is unknown or fp32, which the others are made from, is missing.
    """
    wanted = {item.strip() for item in text.split(",")}
    if "fp32" not in wanted or not wanted <= set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"got {text!r}; give fp32 and others out of {', '.join(PRECISIONS)}")
    return tuple(p for p in PRECISIONS if p in wanted)


def main(argv: list[str] | None = None) -> int:
    """Measure networks and write the result; exit code 1 when one does not pass fp32."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=parse_names, default=list(NETWORKS), metavar="LIST",
        help=f"comma-separated, out of {', '.join(NETWORKS)}; rows of the others stay as they are",
    )  # fmt: skip
    parser.add_argument(
        "--precision", type=parse_precisions, default=PRECISIONS, metavar="LIST",
        help=f"comma-separated, fp32 among them, out of {', '.join(PRECISIONS)}",
    )  # fmt: skip
    args = parser.parse_args(argv)
    rows = {} if args.only == list(NETWORKS) else earlier_rows()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            rows[name] = measure(name, Path(folder), args.precision)
            print(name, rows[name], flush=True)
            rows = {known: rows[known] for known in NETWORKS if known in rows}
            write_result(RESULT, {"rows": rows, "gpu": NO_GPU})
    print(table({"rows": rows, "gpu": NO_GPU}))
    passed = [rows[name]["files"].get("fp32", {}).get("status") == "passed" for name in args.only]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
