"""mIoU of every file of a bundle on the whole validation split, and the parity reports behind it.

Exports each run anew with all precisions, then sends every validation image at the working size through
each ONNX file. Example::

    python -m benchmarks.export_accuracy runs/quickstart runs/camvid_46
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.common import EXPORT, Answer, Block, Result, markdown_table, parser, signed, write_result
from export.proof.cases import NamedImage
from export.runners.contract import adapt
from export.runtime import load_runner
from protoseg.evaluate.metrics import confusion_matrix, miou
from protoseg.manifest import Manifest, Precision

EVERYTHING = 1_000_000


def evaluate(bundle: Path, manifest: Manifest, name: str, images: list[NamedImage]) -> float:
    """Mean IoU of one file over labelled images."""
    classes = len(manifest.classes)
    confusion = np.zeros((classes, classes), np.int64)
    with load_runner(bundle, name, "cpu", require_parity=False) as runner:
        for image in images:
            assert image.mask is not None
            batch = np.ascontiguousarray(image.pixels.transpose(2, 0, 1)[None])
            labels = runner(adapt(batch, manifest.graph.input_layout))["labels"][0]
            target = np.where(image.mask == manifest.ignore_index, classes, image.mask)
            confusion += confusion_matrix(labels, target, classes)
    return miou(confusion)


def measure(run: Path, folder: Path) -> dict[str, Any]:
    """Parity and mIoU of every precision of a run."""
    from export.calibration import checkpoint_images
    from export.graph.trace import ExportSettings
    from export.onnx import export_bundle
    from protoseg.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    settings = ExportSettings(precisions=get_args(Precision), head=checkpoint.info.best_head())
    bundle, manifest = export_bundle(checkpoint, folder / "bundle", settings)
    images = checkpoint_images(checkpoint.info, "val", EVERYTHING)
    files: dict[str, Any] = {}
    for item in (f for f in manifest.files if f.cut_of is None):
        cases = item.parity.cases
        files[item.precision] = {
            "parity": item.parity.status, "reason": item.parity.reason,
            "megabytes": round(item.size / 1e6, 2), "miou": evaluate(bundle, manifest, item.name, images),
            "metrics": [{"reference": c.reference, "runtime": c.runtime, **c.metrics} for c in cases],
        }  # fmt: skip
    reference = files["fp32"]["miou"]
    for entry in files.values():
        entry["miou_drop_points"] = round(100 * (reference - entry["miou"]), 3)
    return {
        "run": manifest.name, "head": manifest.graph.head, "classes": len(manifest.classes),
        "images": len(images), "files": files,
    }  # fmt: skip


def table(result: Result) -> str:
    """MIoU of the exported files."""
    rows = []
    for run in result["runs"]:
        for name, file in run["files"].items():
            miou = "" if file.get("miou") is None else f"{100 * file['miou']:.2f}"
            drop = file.get("miou_drop_points")
            change = "" if drop is None else signed(-drop)
            rows.append([run["run"], name, f"{file['megabytes']:.1f}", miou, change, file["parity"]])
    images = " and ".join(f"{run['images']} ({run['run']})" for run in result["runs"])
    said = (
        f"The exported files on the validation images of their run, {images}: size in MB, mIoU of the labels "
        "they answer with in %, change against torch in points, and the verdict of the parity gate."
    )
    cells = markdown_table(["run", "file", "MB", "mIoU", "change", "parity"], rows)
    return "\n\n".join([said, cells, *([result["note"]] if "note" in result else [])])


ANSWERS = {
    "export_accuracy": Answer("accuracy of the exported files", "python -m benchmarks.export_accuracy RUN")
}
BLOCKS = {"export_accuracy": Block(table, ("export_accuracy",), EXPORT)}


def main(argv: list[str] | None = None) -> int:
    """Measure all runs and write ``results/export_accuracy.json``."""
    command = parser(__doc__)
    add = command.add_argument
    add("runs", type=Path, nargs="+", help="run folders with checkpoints")
    add("--name", default="export_accuracy", help="name of the result file")
    args = command.parse_args(argv)
    results = []
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(run, Path(folder)))
        for precision, entry in results[-1]["files"].items():
            print(f"{run.name} {precision}: parity {entry['parity']}, mIoU {entry['miou']:.4f}, "
                  f"{entry['miou_drop_points']} points lost")  # fmt: skip
    print(write_result(args.name, {"runs": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
