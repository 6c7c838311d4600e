"""Runs a file and its reference over the same batches and judges it.

The chain is torch -> ONNX fp32 -> ONNX fp16 or int8 -> engine, and file -> cut of it. Each file is compared
with its predecessor, and with torch: at export with the checkpoint itself, later with the scores that torch
left in ``samples/``. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle import OPENVINO_PRECISIONS, OpenVino, source_of
from export.graph.edit import probe, produced_names, read_model, to_bytes
from export.graph.half import SUFFIX
from export.proof.cases import Case, NamedImage, make_cases
from export.proof.compare import HEADS, Comparator, score_key
from export.proof.gates import GATES
from export.proof.judge import conclude, judge
from export.proof.samples import active_classes, head_scores, sample_batches
from export.runners.contract import Array, Layout, Runner, adapt
from export.runners.openvino import OpenVinoRunner
from export.runners.ort import OrtRunner
from protoseg.errors import ExportError
from protoseg.manifest import ArtifactFile, Head, Manifest, ParityCase, ParityReport

Compute = Callable[[NDArray[np.uint8]], dict[str, Array]]
COMPARED_OUTPUTS = ("labels", "confidence", "agreement", "similarity", "novelty")


@dataclass(frozen=True)
class Setup:
    """What a comparison needs to know about the bundle."""

    head: Head
    layout: Layout
    num_classes: int
    active: Array
    """(C,) bool: classes with prototypes."""
    stride_multiple: int
    ignore_index: int

    @classmethod
    def of(cls, bundle: Path, manifest: Manifest) -> Setup:
        """From a bundle."""
        graph = manifest.graph
        return cls(
            graph.head, graph.input_layout, len(manifest.classes), active_classes(bundle, manifest),
            manifest.input.stride_multiple, manifest.ignore_index,
        )  # fmt: skip


class ProbedOnnx:
    """An ONNX file in ONNX Runtime with the scores of both heads as additional outputs.

    Args:
        path: ONNX file.
        layout: Element type and axes of its input.
        load: What runs the probed graph; None: ONNX Runtime.
    """

    def __init__(self, path: Path, layout: Layout, load: Callable[[bytes], Runner] | None = None) -> None:
        model = read_model(path)
        produced = produced_names(model)
        scores = [key for head in HEADS if (key := score_key(head, produced)) is not None]
        outputs = {value.name for value in model.graph.output}
        self.ends_at_stride = "labels" not in outputs
        self.names = outputs & {*COMPARED_OUTPUTS} | {*scores} | {"labels"}
        half_scales = any(
            node.op_type == "QuantizeLinear" and node.input[1].endswith(SUFFIX) for node in model.graph.node
        )
        data = to_bytes(probe(model, scores))
        self.runner = OrtRunner(data, exact_qdq=half_scales) if load is None else load(data)
        self.layout = layout
        self.description = self.runner.description

    def __call__(self, batch: NDArray[np.uint8]) -> dict[str, Array]:
        """(B, C, H, W) uint8 -> outputs and scores by name."""
        height, width = batch.shape[2:]
        outputs = self.runner(adapt(batch, self.layout))
        # inside the graph scores still have the padded size
        return {k: v[..., :height, :width] if k.endswith("_logits") else v for k, v in outputs.items()}


def at_stride(compute: Compute, head: Head) -> Compute:
    """A side of a comparison with labels at the decoder's stride, where a graph of ``logits_stride`` ends."""

    def call(batch: NDArray[np.uint8]) -> dict[str, Array]:
        # without scores of full size, which are no neighbours of these labels
        outputs = {name: value for name, value in compute(batch).items() if name.endswith("_stride")}
        scores = outputs.get("logits_stride")
        if scores is None:
            prototype = outputs.get("prototype_logits_stride")
            scores = head_scores(outputs["linear_logits_stride"], prototype, head)
        return {**outputs, "labels": scores.argmax(1)}

    return call


def prove_case(
    setup: Setup,
    gates: str,
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
        gates: Key of ``GATES``.
        cases: Batches.
        reference: What is right.
        candidate: What is judged; a failure to run becomes a failure of the case.
        expected: Outputs that both must give.
        labels: Name of the reference and description of the candidate's runtime, for the report.
    """
    comparator = Comparator(setup.num_classes, setup.head, setup.active, expected, setup.ignore_index)
    for case in cases:
        try:
            found = candidate(case.batch)
        except Exception as error:  # ONNX Runtime raises its own types for a kernel that fails
            text = str(error) if isinstance(error, ExportError) else " ".join(str(error).split())[:200]
            comparator.problems.append(f"{case.name}: {text}")
            continue
        comparator.add(
            case.name, reference(case.batch), found, on_multiple=case.on_multiple(setup.stride_multiple),
            natural=case.natural, mask=case.mask,
        )  # fmt: skip
    return judge(comparator, GATES[gates], *labels)


def prove_file(
    setup: Setup,
    gates: str,
    probed: ProbedOnnx,
    cases: Sequence[Case],
    references: Sequence[tuple[str, Compute, set[str] | None]],
) -> list[ParityCase]:
    """Compare an ONNX file with each of its references.

    Args:
        setup: The bundle's settings.
        gates: Key of ``GATES``.
        probed: The file.
        cases: Batches.
        references: Name, outputs for a batch, and the names that it gives (None: all that the file gives).
    """
    candidate: Compute = probed
    if probed.ends_at_stride:
        cases = [replace(case, mask=None) for case in cases]  # those are of full size
        candidate = at_stride(probed, setup.head)
        references = [(name, at_stride(compute, setup.head), names) for name, compute, names in references]
    return [
        prove_case(
            setup, gates, cases, compute, candidate, labels=(name, probed.description),
            expected=probed.names if names is None else probed.names & names,
        )
        for name, compute, names in references
    ]  # fmt: skip


def prove_engine(
    bundle: Path,
    manifest: Manifest,
    item: ArtifactFile,
    runner: Runner,
    takes: Callable[[int, int, int], bool] = lambda batch, height, width: True,
) -> ParityReport:
    """Compare a loaded engine with the ONNX file it was built from.

    Args:
        bundle: Bundle folder.
        manifest: Its manifest.
        item: The engine's record.
        runner: The engine, loaded.
        takes: Whether images of this batch, height and width fit the engine.
    """
    setup = Setup.of(bundle, manifest)
    source = bundle / (item.source or source_of(manifest).name)
    # engines change the order of sums: fp32 engines are judged like a low precision, see docs/export.md
    gates = "half" if item.precision in ("fp32", "fp16") else item.precision
    case = prove_case(
        setup, gates, [c for c in bundle_cases(bundle, manifest) if takes(len(c.batch), *c.batch.shape[2:])],
        ProbedOnnx(source, setup.layout), lambda batch: runner(adapt(batch, setup.layout)),
        expected={info.name for info in item.outputs} & {*COMPARED_OUTPUTS},
        labels=(source.name, runner.description),
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


def prove_again(bundle: Path, manifest: Manifest, runtime: OpenVino | None = None) -> dict[str, ParityReport]:
    """Prove every ONNX file of a bundle again, without the checkpoint; or in OpenVINO those for CPUs.

    The fp32 graph is compared with torch's scores in ``samples/``; every other file with those and with its
    predecessor, on batches of all kinds made from the sample images. In OpenVINO every file is compared with
    what ONNX Runtime makes of that predecessor, or of itself when it has none.

    Returns:
        Report by file name. Engines are left out: ``export.tensorrt`` proves them where they run.
    """
    setup = Setup.of(bundle, manifest)
    source = source_of(manifest).name
    size = manifest.graph.static_shape[0] if manifest.graph.static_shape else 1
    known: dict[bytes, dict[str, Array]] = {}
    from_torch = []
    for sample, batch, outputs in sample_batches(bundle, manifest):
        repeated = np.repeat(batch, size, 0)
        known[repeated.tobytes()] = {name: np.repeat(value, size, 0) for name, value in outputs.items()}
        from_torch.append(Case(sample.image, repeated, natural=True))
    torch_side = ("torch (samples)", lambda batch: known[batch.tobytes()], set().union(*known.values()))
    made: list[Case] = []
    reports = {}
    for item in manifest.files:
        if item.kind != "onnx" or (runtime is not None and item.precision not in OPENVINO_PRECISIONS):
            continue
        gates: str = item.precision
        load: Callable[[bytes], Runner] | None = None
        if runtime is not None:
            load = partial(OpenVinoRunner, bf16=runtime == "openvino-bf16")
            gates = "bf16" if runtime == "openvino-bf16" and gates == "fp32" else gates
        probed = ProbedOnnx(bundle / item.name, setup.layout, load)
        cases = prove_file(setup, gates, probed, from_torch, [torch_side])
        if item.name != source or runtime is not None:
            made = made or bundle_cases(bundle, manifest)
            before = ProbedOnnx(bundle / (item.cut_of or source), setup.layout)
            if runtime is None and item.cut_of:
                gates = "cut"
            cases += prove_file(setup, gates, probed, made, [(item.cut_of or source, before, before.names)])
        reports[item.name] = conclude(cases)
    return reports
