"""Checkpoint to bundle: ``python -m export.onnx CKPT [-o BUNDLE]``."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from export.bundle import REJECTED_SUFFIX, check_target
from export.calibration import checkpoint_images, folder_images
from export.graph.module import DEFAULT_OUTPUTS, EXPLAINING_OUTPUTS, OPTIONAL_OUTPUTS
from export.graph.trace import DEFAULT_OPSET, OPSETS, ExportSettings, check_settings
from export.proof.cases import NamedImage
from export.proof.judge import format_report
from export.runners.contract import Layout
from export.summary import format_table
from export.writer import BundleWriter
from protoseg.checkpoint import Checkpoint, load_checkpoint
from protoseg.errors import ExportError, guarded
from protoseg.explain.atlas import fitting_atlas
from protoseg.explain.make import atlas_folder, checkpoint_atlas
from protoseg.files import folder_whole
from protoseg.manifest import ArtifactFile, Head, Manifest, Precision

logger = logging.getLogger(__name__)
NUM_PARITY_IMAGES = 24
NUM_CALIBRATION = 64
BUNDLE_DIR = "bundle"
LAYOUTS: dict[str, Layout] = {"uint8": "uint8_nchw", "nhwc": "uint8_nhwc", "float32": "float32_nchw"}


def parity_images(checkpoint: Checkpoint, settings: ExportSettings) -> list[NamedImage]:
    """Validation images of the run; when they have gone and a folder is named, images of that."""
    try:
        return checkpoint_images(checkpoint.info, "val", NUM_PARITY_IMAGES)
    except ExportError:
        if settings.calibrate is None:
            raise
        logger.warning("the validation images have gone: parity uses %s, without mIoU", settings.calibrate)
        return folder_images(settings.calibrate, checkpoint.info, NUM_PARITY_IMAGES)


def export_bundle(checkpoint: Checkpoint, target: Path, settings: ExportSettings) -> tuple[Path, Manifest]:
    """Write a bundle folder, whole or not at all.

    A bundle whose fp32 graph did not pass parity is written to ``TARGET.rejected``, and what was at
    ``target`` stays.

    Args:
        checkpoint: What is exported.
        target: Bundle folder; an existing bundle is replaced once the new one is complete.
        settings: How.

    Returns:
        The folder that was written, and its manifest.

    Raises:
        ExportError: If the network, the settings or the images do not allow it.
    """
    check_target(target)
    settings = check_settings(checkpoint, settings)
    info = checkpoint.info
    images = parity_images(checkpoint, settings)
    calibration = (
        folder_images(settings.calibrate, info, settings.num_calibration)
        if settings.calibrate is not None
        else checkpoint_images(info, "unlabeled", settings.num_calibration)
    )
    rejected = target.with_name(target.name + REJECTED_SUFFIX)
    with folder_whole(target) as folder:
        manifest = BundleWriter(checkpoint, settings, images, calibration).write(folder)
        if manifest.files[0].parity.status != "passed":
            shutil.rmtree(rejected, ignore_errors=True)
            folder.replace(rejected)
            return rejected, manifest
    shutil.rmtree(rejected, ignore_errors=True)
    return target, manifest


@dataclass(frozen=True)
class Exported:
    """A bundle that was written; it can be given where a path is asked for."""

    folder: Path
    """The bundle folder, or ``BUNDLE.rejected`` when its fp32 graph did not pass parity."""
    manifest: Manifest
    """Its contract: each file with its parity record."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<Exported {self.folder}: {', '.join(f'{k} {v}' for k, v in self.parity.items())}>"

    @property
    def servable(self) -> bool:
        """Whether the fp32 graph passed parity."""
        return self.manifest.files[0].parity.status == "passed"

    @property
    def failed(self) -> list[ArtifactFile]:
        """Files that did not pass parity, which are not served."""
        return [item for item in self.manifest.files if item.parity.status != "passed"]

    @property
    def parity(self) -> dict[str, str]:
        """``passed``, ``failed``, ``inconclusive`` or ``not_run`` by file name."""
        return {item.name: item.parity.status for item in self.manifest.files}

    def reports(self) -> str:
        """What is wrong with the failed files, a few lines for each."""
        return "\n".join(format_report(item.name, item.parity) for item in self.failed)

    def table(self) -> str:
        """Precision, size, parity, and latency as a first impression (measured now) of every file."""
        return format_table(self.folder, self.manifest)


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    head: Head | None = None,
    precisions: tuple[Precision, ...] = ("fp32",),
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS,
    layout: Layout = "uint8_nchw",
    static: tuple[int, int, int] | None = None,
    opset: int = DEFAULT_OPSET,
    calibrate: str | os.PathLike[str] | None = None,
    num_calibration: int = NUM_CALIBRATION,
    explain: bool = False,
) -> Exported:
    """What the command and ``protoseg.export`` do: a bundle from a checkpoint's folder.

    Args:
        checkpoint: Run folder, checkpoint folder or a file in it.
        output: Bundle folder; None: beside the checkpoint.
        head: Head behind labels and confidence; None: what has the highest validation mIoU in the checkpoint.
        precisions: Files to make; fp32 is always made.
        outputs: Graph outputs.
        layout: Element type and axes of the image.
        static: Fixed (batch, height, width); None for dynamic axes.
        opset: ONNX operator set.
        calibrate: Folder of images for calibration; None: the run's unlabelled images.
        num_calibration: At most this many, at least 1.
        explain: Add what the service explains by: the outputs ``prototype`` and ``similarity``, and the
            training patches of the prototypes, which are made where the run has none of these weights.

    Raises:
        UserError: If the network, the settings or the images do not allow it.
    """
    loaded = load_checkpoint(Path(checkpoint))
    atlas = explaining_atlas(loaded) if explain else None
    if explain:
        outputs = tuple(dict.fromkeys((*outputs, *EXPLAINING_OUTPUTS)))
    settings = ExportSettings(
        precisions=precisions, head=head or loaded.info.best_head(), layout=layout, static=static,
        outputs=outputs, opset=opset, calibrate=None if calibrate is None else Path(calibrate),
        num_calibration=max(1, num_calibration), atlas=atlas,
    )  # fmt: skip
    target = loaded.path.parent / BUNDLE_DIR if output is None else Path(output)
    return Exported(*export_bundle(loaded, target, settings))


def explaining_atlas(checkpoint: Checkpoint) -> Path:
    """Folder of the checkpoint's atlas, which is made where there is none of these weights.

    Raises:
        UserError: If it cannot be made.
    """
    folder = atlas_folder(checkpoint.path)
    if fitting_atlas(folder, checkpoint.info.weights_sha256) is None:
        logger.info("searching the training patches of the prototypes")
        checkpoint_atlas(checkpoint, progress=False)
    return folder


def parse_static(text: str) -> tuple[int, int, int]:
    """``BxHxW`` as three positive integers.

    Raises:
        argparse.ArgumentTypeError: If it has another form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 1:
        raise argparse.ArgumentTypeError(f"expected BATCHxHEIGHTxWIDTH as 1x360x480, got {text!r}")
    batch, height, width = map(int, match.groups())
    return batch, height, width


def _names(text: str, known: Sequence[str], what: str) -> set[str]:
    names = {name.strip() for name in text.split(",")} - {""}
    if unknown := sorted(names - set(known)):
        raise argparse.ArgumentTypeError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
    return names


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """A comma-separated list of precisions.

    Raises:
        argparse.ArgumentTypeError: If one is unknown.
    """
    known: tuple[Precision, ...] = get_args(Precision)
    names = _names(text, known, "precision")
    return tuple(p for p in known if p in names)


def parse_outputs(text: str) -> tuple[str, ...]:
    """``labels,confidence`` and the optional outputs that are named; ``none`` for no more.

    Raises:
        argparse.ArgumentTypeError: If one is unknown.
    """
    names = _names(text, (*OPTIONAL_OUTPUTS, "labels", "confidence", "none"), "output")
    return ("labels", "confidence", *(name for name in OPTIONAL_OUTPUTS if name in names))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.onnx",
        description="Turn a checkpoint into a bundle: ONNX files, manifest.json and samples/, each network "
        "proven against torch. Exit code 1 when a proof fails.",
    )
    parser.add_argument("checkpoint", help="run folder, checkpoint folder or file")
    parser.add_argument("-o", "--output", type=Path, help="bundle folder (default: beside the checkpoint)")
    parser.add_argument(
        "--precision", type=parse_precisions, default=("fp32",), metavar="LIST",
        help="files to make, out of fp32 (always made), fp16, int8 (TensorRT), int8-cpu (ONNX Runtime)",
    )  # fmt: skip
    parser.add_argument(
        "--head", choices=("auto", *get_args(Head)), default="auto",
        type=lambda name: "fused" if name == "mean" else name,  # its name up to 0.1
        help="what labels and confidence come from; fused: the mean of both heads' probabilities (default: "
        "what has the highest validation mIoU in the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--outputs", type=parse_outputs, default=DEFAULT_OUTPUTS, metavar="LIST",
        help=f"outputs beside labels and confidence, out of {', '.join(OPTIONAL_OUTPUTS)}; none for no more "
        "(default: agreement)",
    )  # fmt: skip
    parser.add_argument(
        "--explain", action="store_true",
        help="what the service explains by: the outputs prototype and similarity, and thumbnails of the "
        "training patches that each prototype stands for",
    )  # fmt: skip
    parser.add_argument(
        "--input", choices=("uint8", "nhwc", "float32"), default="uint8",
        help="image: uint8 NCHW (default), uint8 NHWC, or float32 NCHW in [0, 255]",
    )  # fmt: skip
    parser.add_argument(
        "--static", type=parse_static, metavar="BxHxW", help="fix batch, height and width (default: dynamic)"
    )
    parser.add_argument(
        "--opset", type=int, default=DEFAULT_OPSET, help=f"{OPSETS[0]} to {OPSETS[-1]} (default: 20)"
    )
    parser.add_argument(
        "--calibrate", type=Path, metavar="FOLDER",
        help="images for calibration (default: the run's unlabelled images)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=NUM_CALIBRATION,
        metavar="N",
        help="at most this many (default: 64)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Export a checkpoint; exit code 1 when a proof fails or on bad input."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    for ours in ("export", __name__):  # of the tools behind us, warnings and errors only
        logging.getLogger(ours).setLevel(logging.INFO)

    def body() -> int:
        exported = export_checkpoint(
            args.checkpoint, args.output, head=None if args.head == "auto" else args.head,
            precisions=args.precision, outputs=args.outputs, layout=LAYOUTS[args.input], static=args.static,
            opset=args.opset, calibrate=args.calibrate, num_calibration=args.calibration_images,
            explain=args.explain,
        )  # fmt: skip
        sys.stdout.write(exported.table() + "\n")
        if exported.failed:
            sys.stderr.write(exported.reports() + "\n")
        folder = exported.folder
        if not exported.servable:
            status = exported.manifest.files[0].parity.status
            sys.stderr.write(f"error: parity {status}: not servable, kept in {folder}\n")
            return 1
        sys.stdout.write(f"bundle: {folder}\nnext: PROTOSEG_MODEL={folder} bentoml serve serving:svc\n")
        return 1 if exported.failed else 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
