"""Proves that a bundle computes what was trained: ``python -m export.parity BUNDLE``.

The chain is torch -> ONNX fp32 -> ONNX fp16 or int8 -> engine. Each file is compared with its
predecessor, and with torch: at export with the checkpoint itself, later with the scores that torch left
in ``samples/``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import (
    ACTIVE_KEY,
    adapt,
    sample_batches,
    verify_bundle,
    weight_note,
    with_reports,
    write_manifest,
)
from export.errors import ExportError, guarded
from export.graph.edit import probe, produced_names, read_model, to_bytes
from export.graph.half import SUFFIX
from export.proof.cases import Case, NamedImage, dynamic_cases, static_cases
from export.proof.compare import HEADS, Comparator, conclude, score_key
from export.proof.gates import GATES
from export.runners.ort import OrtRunner, Runner
from protoseg.manifest import (
    ArtifactFile,
    Head,
    Manifest,
    ParityCase,
    ParityReport,
    TensorInfo,
)

logger = logging.getLogger(__name__)
Array = NDArray[Any]
Compute = Callable[[NDArray[np.uint8]], dict[str, Array]]
COMPARED_OUTPUTS = ("labels", "confidence", "agreement")


@dataclass(frozen=True)
class Setup:
    """What a comparison needs to know about the bundle."""

    head: Head
    layout: Any
    num_classes: int
    active: Array
    """(C,) bool: classes with prototypes."""
    stride_multiple: int
    ignore_index: int

    @classmethod
    def of(cls, manifest: Manifest, active: Array) -> Setup:
        """From a manifest."""
        graph = manifest.graph
        return cls(
            graph.head, graph.input_layout, len(manifest.classes), active,
            manifest.input.stride_multiple, manifest.ignore_index,
        )  # fmt: skip


class ProbedOnnx:
    """An ONNX file in ONNX Runtime with the scores of both heads as additional outputs.

    Args:
        path: ONNX file.
        layout: Element type and axes of its input.
        provider: ``cpu`` or ``cuda``.
    """

    def __init__(self, path: Path, layout: Any, provider: Any = "cpu") -> None:
        model = read_model(path)
        produced = produced_names(model)
        scores = [key for head in HEADS if (key := score_key(head, produced)) is not None]
        self.names = {value.name for value in model.graph.output} & {*COMPARED_OUTPUTS} | {*scores}
        half_scales = any(
            node.op_type == "QuantizeLinear" and node.input[1].endswith(SUFFIX) for node in model.graph.node
        )
        self.runner = OrtRunner(to_bytes(probe(model, scores)), provider, exact_qdq=half_scales)
        self.layout = layout
        self.description = self.runner.description

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, Array]:
        """(B, C, H, W) uint8 -> outputs and scores by name."""
        height, width = batch.shape[2:]
        outputs = self.runner(adapt(batch, self.layout))
        # inside the graph scores still have the padded size
        return {k: v[..., :height, :width] if k.endswith("_logits") else v for k, v in outputs.items()}


def compare(
    setup: Setup,
    precision: str,
    cases: Iterable[Case],
    reference: Compute,
    candidate: Compute,
    *,
    expected: set[str],
    labels: tuple[str, str],
) -> ParityCase:
    """Run both sides over all cases and judge.

    Args:
        setup: The bundle's settings.
        precision: Key of ``GATES``.
        cases: Batches.
        reference: What is right.
        candidate: What is judged; a failure to run becomes a failure of the case.
        expected: Outputs that both must give.
        labels: Name of the reference and description of the candidate's runtime, for the report.
    """
    comparator = Comparator(
        GATES[precision], setup.num_classes, setup.head, setup.active, expected, setup.ignore_index
    )
    for case in cases:
        try:
            found = candidate(case.batch)
        except ExportError as error:
            comparator.problems.append(f"{case.name}: {error}")
            continue
        except Exception as error:  # ONNX Runtime raises its own types for a kernel that fails
            comparator.problems.append(f"{case.name}: {' '.join(str(error).split())[:200]}")
            continue
        comparator.add(
            case.name, reference(case.batch), found, on_multiple=case.on_multiple(setup.stride_multiple),
            natural=case.natural, mask=case.mask,
        )  # fmt: skip
    return comparator.result(*labels)


def make_cases(
    images: list[NamedImage], crop: tuple[int, int], multiple: int, static: tuple[int, int, int] | None
) -> list[Case]:
    """The batches that fit a graph's axes."""
    return static_cases(images, static) if static else dynamic_cases(images, crop, multiple)


def sample_case(bundle: Path, manifest: Manifest, setup: Setup, precision: str, path: Path) -> ParityCase:
    """Compare an ONNX file with what torch left in ``samples/``."""
    probed = ProbedOnnx(path, setup.layout)
    static = manifest.graph.static_shape
    size = static[0] if static else 1
    known: dict[bytes, dict[str, Array]] = {}
    cases = []
    for sample, batch, outputs in sample_batches(bundle, manifest):
        repeated = np.repeat(batch, size, 0)
        known[repeated.tobytes()] = {name: np.repeat(value, size, 0) for name, value in outputs.items()}
        cases.append(Case(sample.image, repeated, natural=True))
    expected = probed.names & set().union(*(set(v) for v in known.values())) if known else probed.names
    return compare(
        setup, precision, cases, lambda batch: known[batch.tobytes()], probed,
        expected=expected, labels=("torch (samples)", probed.description),
    )  # fmt: skip


def source_of(manifest: Manifest) -> ArtifactFile:
    """The fp32 graph.

    Raises:
        ExportError: If the bundle has none.
    """
    for item in manifest.files:
        if item.kind == "onnx" and item.precision == "fp32":
            return item
    raise ExportError("the bundle has no fp32 ONNX file; export the checkpoint again")


def active_classes(bundle: Path, manifest: Manifest) -> Array:
    """(C,) bool: classes with prototypes, as the samples note it."""
    for sample in manifest.samples:
        if sample.logits is not None:
            with np.load(bundle / sample.logits, allow_pickle=False) as stored:
                if ACTIVE_KEY in stored.files:
                    return np.asarray(stored[ACTIVE_KEY], bool)
    return np.ones(len(manifest.classes), bool)


def engine_compute(runner: Runner, layout: Any) -> Compute:
    """A loaded engine as one side of a comparison."""
    return lambda batch: runner(adapt(batch, layout))


def output_names(infos: list[TensorInfo]) -> set[str]:
    """Declared outputs that parity compares."""
    return {info.name for info in infos} & {*COMPARED_OUTPUTS}


def compare_engine(
    bundle: Path, manifest: Manifest, item: ArtifactFile, runner: Runner, profile: Any = None
) -> ParityReport:
    """Compare a loaded engine with the ONNX file it was built from.

    Args:
        bundle: Bundle folder.
        manifest: Its manifest.
        item: The engine's record.
        runner: The engine, loaded.
        profile: Predicate on batch shapes that the engine takes; None takes all.
    """
    setup = Setup.of(manifest, active_classes(bundle, manifest))
    source = bundle / (item.source or source_of(manifest).name)
    probed = ProbedOnnx(source, setup.layout)
    cases = [c for c in bundle_cases(bundle, manifest) if profile is None or profile(c.batch.shape)]
    expected = output_names(item.outputs)
    # engines change the order of sums: fp32 engines are judged like a low precision, see docs/export.md
    precision = "half" if item.precision in ("fp32", "fp16") else item.precision
    case = compare(
        setup, precision, cases, probed, engine_compute(runner, setup.layout),
        expected=expected, labels=(source.name, runner.description),
    )  # fmt: skip
    return conclude([case])


def bundle_cases(bundle: Path, manifest: Manifest) -> list[Case]:
    """Batches made from the bundle's own samples."""
    images = [
        NamedImage(sample.image, np.ascontiguousarray(batch[0].transpose(1, 2, 0)))
        for sample, batch, _ in sample_batches(bundle, manifest)
    ]
    rule = manifest.input
    return make_cases(images, rule.crop, rule.stride_multiple, manifest.graph.static_shape)


def repeat(bundle: Path, manifest: Manifest) -> dict[str, ParityReport]:
    """Prove every ONNX file of a bundle again, without the checkpoint.

    The fp32 graph is compared with torch's scores in ``samples/``; every other file with those and with
    the fp32 graph on batches of all kinds made from the sample images.

    Returns:
        Report by file name. Engines are left out: ``export.tensorrt`` proves them where they run.
    """
    setup = Setup.of(manifest, active_classes(bundle, manifest))
    source = source_of(manifest)
    reports = {}
    for item in manifest.files:
        if item.kind != "onnx":
            continue
        cases = [sample_case(bundle, manifest, setup, item.precision, bundle / item.name)]
        if item.name != source.name:
            reference = ProbedOnnx(bundle / source.name, setup.layout)
            probed = ProbedOnnx(bundle / item.name, setup.layout)
            cases.append(
                compare(
                    setup,
                    item.precision,
                    bundle_cases(bundle, manifest),
                    reference,
                    probed,
                    expected=reference.names & probed.names,
                    labels=(source.name, probed.description),
                )
            )
        reports[item.name] = conclude(cases)
    return reports


def format_report(name: str, report: ParityReport) -> str:
    """One file's parity as a few lines of text."""
    lines = [f"{name}: {report.status}" + (f" ({report.reason})" if report.reason else "")]
    for case in report.cases:
        figures = ", ".join(
            f"{key} {case.metrics[key]:.3g}" if "diff" in key or "drop" in key
            else f"{key} {case.metrics[key]:.6f}"
            for key in case.metrics
            if case.metrics[key] is not None
            and key.endswith(("max_logit_diff", "/agreement", "max_diff", "miou_drop"))
        )  # fmt: skip
        lines.append(f"  vs {case.reference}: {case.inputs} images, {case.pixels} pixels; {figures}")
        lines += [f"    FAILED {text}" for text in case.failures]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Repeat parity of a bundle and print it; exit code 1 unless everything passed."""
    parser = argparse.ArgumentParser(
        prog="python -m export.parity",
        description="Prove again, from samples/ and without the checkpoint, that a bundle's networks "
        "compute what was trained. A file that fails is marked so in manifest.json and is served no more; "
        "exit code 1 unless all passed.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--no-write", action="store_true", help="leave manifest.json as it is")
    args = parser.parse_args(argv)

    def body() -> int:
        manifest = verify_bundle(args.bundle)
        reports = repeat(args.bundle, manifest)
        for name, report in reports.items():
            sys.stdout.write(format_report(name, report) + "\n")
            if note := weight_note(manifest.file(name)):
                sys.stdout.write(f"  {note}\n")
        skipped = [item.name for item in manifest.files if item.name not in reports]
        for name in skipped:
            sys.stdout.write(f"{name}: left as it was; prove engines with python -m export.tensorrt\n")
        if not args.no_write:
            # samples prove less than the checkpoint did: they can take a pass away, not give one
            lost = {n: r for n, r in reports.items() if manifest.file(n).parity.status == "passed"}
            lost = {n: r for n, r in lost.items() if r.status != "passed"}
            write_manifest(args.bundle, with_reports(manifest, lost))
        return 0 if reports and all(r.status == "passed" for r in reports.values()) else 1

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
