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
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.common import (
    EXPORT,
    RESULTS,
    ROOT,
    Answer,
    Block,
    Result,
    machine,
    markdown_table,
    parser,
    write_result,
)
from protoseg.config.load import load_config
from protoseg.errors import ExportError
from protoseg.manifest import ArtifactFile, Precision, read_manifest

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
    "dinov3_dpt": ("DPT, DINOv3 ViT-S/16 (`dinov3_small_dpt`)", ["model.preset=dinov3_small_dpt"], 80),
    "convnext_upernet": (
        "UPerNet, ConvNeXt-T (`convnext_tiny_upernet`)", ["model.preset=convnext_tiny_upernet"], 30,
    ),
    "mobilenetv4": (
        "DeepLabV3+, MobileNetV4-M (`mobilenetv4_medium`)", ["model.preset=mobilenetv4_medium"], 80,
    ),
    "regnety": ("DeepLabV3+, RegNetY-1.6GF (`regnety_1_6gf`)", ["model.preset=regnety_1_6gf"], 80),
}  # fmt: skip
STATIC: dict[str, tuple[int, int, int]] = {"upernet": (1, 96, 128), "convnext_upernet": (1, 96, 128)}
"""UPerNet's pooling pyramid is traced at one size."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RESULT = "export_matrix"
NO_GPU = "not run: no GPU"


def train_briefly(folder: Path, overrides: list[str], steps: int) -> Path:
    """Run folder of a network that learnt from labels alone, with prototypes before its last step."""
    from protoseg.train.loop import train

    own = [
        f"run.dir={folder}", "run.name=matrix", f"train.max_steps={steps}", f"train.warmup_steps={steps - 1}",
        "train.batch_size=4", "train.trackers=[]", "views.crop=[96,128]", "method.unlabeled=false",
        "optim.lr=1e-3", "loss.class_weights=inverse_sqrt",
    ]  # fmt: skip
    config = load_config(None, [*own, *overrides])
    train(config)
    return config.run.path


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
    checkpoint = load_checkpoint(train_briefly(folder / name, overrides, steps))
    row: dict[str, Any] = {
        "network": title,
        "parameters": sum(p.numel() for p in checkpoint.segmenter.parameters()),
        "files": {},
        "rtx": {},
    }
    settings = ExportSettings(precisions=precisions, num_calibration=16, static=STATIC.get(name))
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


def earlier_rows() -> dict[str, dict[str, Any]]:
    """Rows of earlier calls by network, empty when there is no result file."""
    path = RESULTS / f"{RESULT}.json"
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {name: row for name, row in rows.items() if name in NETWORKS}


def listed(text: str, known: Sequence[str]) -> list[str]:
    """A comma-separated list, in the order of ``known``.

    Raises:
        argparse.ArgumentTypeError: If one is unknown.
    """
    names = {name.strip() for name in text.split(",")}
    if not names <= set(known):
        raise argparse.ArgumentTypeError(f"got {text!r}; known are {', '.join(known)}")
    return [name for name in known if name in names]


def main(argv: list[str] | None = None) -> int:
    """Measure networks and write the result; exit code 1 when one does not pass fp32."""
    command = parser(__doc__)
    add = command.add_argument
    networks, precisions = list(NETWORKS), list(PRECISIONS)
    add("--only", type=partial(listed, known=networks), default=networks, metavar="LIST",
        help=f"comma-separated, out of {', '.join(networks)}; rows of the others stay")  # fmt: skip
    add("--precision", type=partial(listed, known=precisions), default=precisions, metavar="LIST",
        help=f"comma-separated, fp32 among them, out of {', '.join(precisions)}")  # fmt: skip
    args = command.parse_args(argv)
    if "fp32" not in args.precision:
        command.error("--precision must have fp32, which the others are made from")
    rows = {} if args.only == networks else earlier_rows()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            rows[name] = measure(name, Path(folder), tuple(args.precision))
            print(name, rows[name], flush=True)
            rows = {known: rows[known] for known in NETWORKS if known in rows}
            write_result(RESULT, {"rows": rows, "gpu": NO_GPU})
    print(table({"rows": rows, "gpu": NO_GPU}))
    passed = [rows[name]["files"].get("fp32", {}).get("status") == "passed" for name in args.only]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
