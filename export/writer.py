"""Makes the files of a bundle: graphs of every precision, their proofs, samples, the manifest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from export.bundle import write_manifest
from export.calibration import images_hash
from export.graph.edit import check_graph, prune, read_model, tensor_infos, to_bytes
from export.graph.half import audit, first_nodes, lower_to_half
from export.graph.int8 import quantize
from export.graph.trace import ExportSettings, build_graph
from export.proof.cases import Case, NamedImage, make_cases, static_cases
from export.proof.judge import conclude
from export.proof.prove import ProbedOnnx, Setup, prove_case, prove_file
from export.proof.reference import TorchRunner, half_reference
from export.proof.samples import write_sample
from export.runners.contract import Layout, adapt
from export.runners.ort import OrtRunner, installed
from protoseg.checkpoint import Checkpoint
from protoseg.explain.atlas import ATLAS_DIR, pack_atlas
from protoseg.files import sha256_file
from protoseg.manifest import (
    NOVEL,
    ArtifactFile,
    AtlasFiles,
    Baseline,
    GraphSettings,
    Manifest,
    ParityCase,
    ParityReport,
    Precision,
)

logger = logging.getLogger(__name__)
FILE_NAMES: dict[str, str] = {
    p: "model.onnx" if p == "fp32" else f"model.{p}.onnx" for p in get_args(Precision)
}
# what services on CPUs run, and the outputs that they ask for one at a time: ``labels`` for a mask, or
# ``logits_stride`` (where it was exported) to enlarge and compare in one go
CUT_PRECISIONS = ("fp32", "int8-cpu")
CUT_OUTPUTS = ("labels", "logits_stride")
NUM_SAMPLES = 3
HALF_CASES = 3
HALF_PIXELS = 65536
CACHE_BYTES = 2**30
TOOLS = ("onnx", "onnxscript", "onnx-ir", "onnxruntime-gpu", "onnxruntime")


def measure_baseline(
    runner: OrtRunner, layout: Layout, cases: Sequence[Case], num_classes: int
) -> Baseline | None:
    """Class shares and confidences over unlabelled images, for drift monitoring."""
    counts, histogram, total, pixels = np.zeros(num_classes), np.zeros(10), 0.0, 0
    novel: int | None = None
    for case in cases:
        result = runner(adapt(case.batch, layout))
        counts += np.bincount(result["labels"].ravel(), minlength=num_classes)
        histogram += np.histogram(result["confidence"], 10, (0, 1))[0]
        total += float(result["confidence"].sum(dtype=np.float64))
        pixels += result["labels"].size
        if "novelty" in result:
            novel = (novel or 0) + int((result["novelty"] >= NOVEL).sum())
    if pixels == 0:
        return None
    return Baseline(
        class_fractions=(counts / counts.sum()).tolist(),
        confidence_histogram=(histogram / histogram.sum()).tolist(),
        mean_confidence=total / pixels, images=sum(len(c.batch) for c in cases),
        novel_fraction=None if novel is None else novel / pixels,
    )  # fmt: skip


def copy_atlas(source: Path, folder: Path) -> AtlasFiles:
    """Put the training patches of the prototypes into a bundle, small.

    Raises:
        DataError: If they cannot be read.
    """
    hashes = pack_atlas(source, folder / ATLAS_DIR)
    return AtlasFiles(folder=ATLAS_DIR, sha256={f"{ATLAS_DIR}/{name}": v for name, v in hashes.items()})


def calibration_cases(images: Sequence[NamedImage], static: tuple[int, int, int] | None) -> list[Case]:
    """Batches of one image each, or of the fixed shape."""
    if static is not None:
        return [case for case in static_cases(images, static, len(images)) if case.natural]
    return [Case(i.name, np.ascontiguousarray(i.pixels.transpose(2, 0, 1)[None]), True) for i in images]


class BundleWriter:
    """Makes the files of one bundle in a staging folder.

    Args:
        checkpoint: What is exported.
        settings: How.
        images: Real images for parity, with masks where there are any.
        calibration: Unlabelled images.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: ExportSettings,
        images: list[NamedImage],
        calibration: list[NamedImage],
    ) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.images, self.calibration = images, calibration
        info = checkpoint.info
        self.reference = TorchRunner(checkpoint.segmenter, settings.head)
        self.setup = Setup(
            settings.head, settings.layout, len(info.classes), checkpoint.segmenter.bank.active.numpy(),
            info.input.stride_multiple, info.ignore_index,
        )  # fmt: skip
        self.cases = make_cases(images, info.input.crop, info.input.stride_multiple, settings.static)
        self.calibration_batches = calibration_cases(calibration, settings.static)
        self._torch: dict[bytes, dict[str, Any]] = {}
        self._cached = 0

    def torch_outputs(self, batch: Any) -> dict[str, Any]:
        """Torch's outputs, computed once for each batch as long as they fit into the cache."""
        key = hashlib.sha256(str(batch.shape).encode() + batch.tobytes()).digest()
        if key in self._torch:
            return self._torch[key]
        outputs = self.reference(batch)
        size = sum(value.nbytes for value in outputs.values())
        if self._cached + size <= CACHE_BYTES:
            self._torch[key] = outputs
            self._cached += size
        return outputs

    def prove(self, folder: Path, item: ArtifactFile) -> ParityReport:
        """Compare a written file with torch and with the file that it was made from."""
        probed = ProbedOnnx(folder / item.name, self.setup.layout)
        proofs = prove_file(
            self.setup, item.precision, probed, self.cases, [("torch", self.torch_outputs, None)]
        )
        source = item.cut_of or (FILE_NAMES["fp32"] if item.precision != "fp32" else None)
        if source is not None:
            before = ProbedOnnx(folder / source, self.setup.layout)
            gates = "cut" if item.cut_of else item.precision
            proofs += prove_file(self.setup, gates, probed, self.cases, [(source, before, before.names)])
        if item.precision == "fp16" and not item.notes.get("nodes_kept_fp32"):
            proofs.append(self.prove_half(probed.names, int(item.notes["convolutions_first_fp32"])))
        return conclude(proofs)

    def prove_half(self, names: set[str], first: int) -> ParityCase:
        """Compare torch in true half precision with torch: only that shows overflows without a GPU."""
        real = [case for case in self.cases if case.natural]
        small = [case for case in real if case.batch[0, 0].size <= HALF_PIXELS]
        smallest = sorted(real, key=lambda case: case.batch.size)[:1]
        proof = prove_case(
            self.setup, "half", small[:HALF_CASES] or smallest, self.torch_outputs,
            half_reference(self.checkpoint.segmenter, self.settings.head, first), expected=names,
            labels=("torch", "torch half precision, cpu"),
        )  # fmt: skip
        # that enough classes occur is the business of the comparisons over all images
        return proof.model_copy(update={"details": {**proof.details, "vacuous": ""}})

    def write_file(
        self,
        folder: Path,
        name: str,
        precision: Precision,
        model: onnx.ModelProto,
        notes: dict[str, Any],
        cut_of: str | None = None,
    ) -> ArtifactFile:
        """Write, prove and describe one file."""
        path = folder / name
        path.write_bytes(to_bytes(model))
        logger.info("proving %s on %d batches", name, len(self.cases))
        item = ArtifactFile(
            name=name, sha256=sha256_file(path), size=path.stat().st_size, kind="onnx", precision=precision,
            opset=self.settings.opset, inputs=tensor_infos(model.graph.input),
            outputs=tensor_infos(model.graph.output), notes=notes, cut_of=cut_of,
            parity=ParityReport(status="not_run"),
        )  # fmt: skip
        return item.model_copy(update={"parity": self.prove(folder, item)})

    def write_cuts(self, folder: Path, item: ArtifactFile) -> list[ArtifactFile]:
        """A file's graph with one output only: ONNX Runtime computes every output that a file has."""
        model, cuts = read_model(folder / item.name), []
        for output in CUT_OUTPUTS:
            if output in {info.name for info in item.outputs}:
                cut = prune(model, [output])
                check_graph(cut, self.settings.opset)
                name = item.name.replace(".onnx", f".{output}.onnx")
                notes = {key: value for key, value in item.notes.items() if key == "weight_bits"}
                cuts.append(self.write_file(folder, name, item.precision, cut, notes, cut_of=item.name))
        return cuts

    def lower(self, model: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The fp32 graph in another precision, and notes for the manifest.

        Raises:
            ExportError: If it cannot be converted.
        """
        logger.info("making %s with %d calibration images", FILE_NAMES[precision], len(self.calibration))
        batches = [adapt(case.batch, self.settings.layout) for case in self.calibration_batches]
        record = {"images": len(self.calibration), "sha256": images_hash(self.calibration)}
        if precision == "fp16":
            made, notes = lower_to_half(model, audit(model, batches), first_nodes(model))
            notes = {"calibration": record, **notes}
            if risky := notes["nodes_kept_fp32"]:
                logger.info(
                    "%d nodes stay in float32, out of the range of a half: %s ...", len(risky), risky[0]
                )
        else:
            made, notes = quantize(model, precision, batches, record)
        check_graph(made, self.settings.opset)
        return made, notes

    def write(self, folder: Path) -> Manifest:
        """Write every file of the bundle.

        Raises:
            ExportError: If a graph cannot be made.
        """
        settings, info = self.settings, self.checkpoint.info
        logger.info("tracing the network, head %s", settings.head)
        model = build_graph(self.checkpoint, settings)
        files = [self.write_file(folder, FILE_NAMES["fp32"], "fp32", model, {})]
        for kind in settings.precisions:
            if kind != "fp32":
                made, notes = self.lower(model, kind)
                files.append(self.write_file(folder, FILE_NAMES[kind], kind, made, notes))
        for item in files[:]:
            if item.precision in CUT_PRECISIONS:
                files += self.write_cuts(folder, item)
        real = [c for c in self.cases if c.natural][: min(NUM_SAMPLES, len(self.images))]
        samples = [
            write_sample(
                folder, number, np.ascontiguousarray(case.batch[0].transpose(1, 2, 0)),
                self.torch_outputs(case.batch[:1]), self.setup.active,
            )
            for number, case in enumerate(real)
        ]  # fmt: skip
        with OrtRunner(folder / FILE_NAMES["fp32"]) as runner:
            baseline = measure_baseline(
                runner, settings.layout, self.calibration_batches, self.setup.num_classes
            )
        digest = files[0].sha256
        bank = self.checkpoint.segmenter.bank
        manifest = Manifest(
            name=info.name, version=digest[:12], created=datetime.now(UTC).isoformat(timespec="seconds"),
            checkpoint_sha256=info.weights_sha256, classes=info.classes, ignore_index=info.ignore_index,
            input=info.input,
            graph=GraphSettings(
                head=settings.head, input_layout=settings.layout, static_shape=settings.static,
                decoder_stride=self.checkpoint.segmenter.network.stride,
                prototypes=bank.num_prototypes if bool(bank.active.any()) else 0,
            ),
            files=files, samples=samples, baseline=baseline, training_metrics=info.metrics,
            versions={**info.versions, **installed(*TOOLS)}, git_revision=info.git_revision,
            adapted=info.adapted,
            atlas=None if settings.atlas is None else copy_atlas(settings.atlas, folder),
        )  # fmt: skip
        write_manifest(folder, manifest)
        return manifest
