"""The JSON contract that leaves the trainer: what a bundle holds.

Shared by checkpoint, export and serving. Needs pydantic only, so that serving can read it without torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from protoseg.errors import ManifestError
from protoseg.input_rule import InputRule
from protoseg.records import Record, explain_validation

BUNDLE_SCHEMA = 1
MANIFEST_NAME = "manifest.json"
Precision = Literal["fp32", "fp16", "int8", "int8-cpu"]
Head = Literal["linear", "prototype", "fused"]
NOVEL = 0.5
"""Novelty from which a pixel is called novel."""


class ClassInfo(Record):
    """One class; its id is its position in the list."""

    name: str
    """Name."""
    color: tuple[int, int, int]
    """Colour, RGB in [0, 255]."""


class Adaptation(Record):
    """A change of the classes without training (``protoseg adapt``)."""

    change: Literal["add", "mend", "merge", "remove", "rename"]
    """What was done."""
    classes: list[str]
    """Names that were given: the class, and for ``merge`` and ``rename`` the other name."""
    source: str
    """Name of the checkpoint that was changed."""
    source_sha256: str
    """Hash of its ``model.safetensors``."""
    head: Head
    """Its best head, which labels until a validation says otherwise."""
    images: dict[str, dict[str, str]]
    """SHA-256 of the ``image`` and the ``mask`` by the name of each image that was given."""
    masks: str
    """How the masks were read."""
    others: int
    """Images beside them that were looked at: what the class is not."""


class TensorInfo(Record):
    """One input or output of a graph."""

    name: str
    """Name."""
    dtype: str
    """numpy name of the element type, as ``uint8``."""
    shape: list[int | str]
    """Sizes; a string names a dynamic axis."""


class ParityCase(Record):
    """One comparison of a file with its reference."""

    reference: str
    """What it is compared with: ``torch`` or a file name."""
    runtime: str
    """What ran it, with its version and provider."""
    inputs: int = Field(ge=0)
    """Inputs compared."""
    pixels: int = Field(ge=0)
    """Pixels compared."""
    metrics: dict[str, float | None]
    """Measured figures by name (``linear/max_logit_diff``, ...); null where not applicable."""
    gates: dict[str, float]
    """Thresholds by name."""
    failures: list[str]
    """Readable reasons; empty when passed."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Per-class IoU, worst image and the like."""


class ParityReport(Record):
    """Whether a file computes what was trained."""

    status: Literal["passed", "failed", "inconclusive", "not_run"]
    """Only ``passed`` may be served."""
    reason: str = ""
    """One line when the status is not ``passed``."""
    cases: list[ParityCase] = Field(default_factory=list)
    """The comparisons behind the status."""


class ArtifactFile(Record):
    """One network file of the bundle."""

    name: str
    """File name inside the bundle."""
    sha256: str
    """Hash of the bytes."""
    size: int = Field(ge=0)
    """Bytes."""
    kind: Literal["onnx", "tensorrt", "tensorrt_rtx"]
    """Format."""
    precision: Precision
    """Numerics."""
    opset: int | None = None
    """ONNX opset."""
    inputs: list[TensorInfo]
    """Graph inputs."""
    outputs: list[TensorInfo]
    """Graph outputs."""
    sidecar: str | None = None
    """JSON file beside an engine."""
    source: str | None = None
    """ONNX file an engine was built from."""
    cut_of: str | None = None
    """File whose graph this is with fewer outputs (``labels`` alone, say), for requests that need no more.
    Null: a graph with all outputs."""
    parity: ParityReport
    """Proof."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """Calibration, nodes kept in fp32 and the like."""


class Sample(Record):
    """An image with the labels torch gave: the smoke test of any deployment."""

    image: str
    """PNG file inside the bundle, already at the working size."""
    labels: str
    """PNG of class ids at the same size, from torch fp32."""
    logits: str | None = None
    """npz with the torch logits of both heads, when kept."""
    sha256: dict[str, str]
    """Hash by file name."""


class AtlasFiles(Record):
    """The training patches of the prototypes, for the service's explanations."""

    folder: str
    """Folder inside the bundle, with ``atlas.json`` and a strip of thumbnails for each prototype."""
    sha256: dict[str, str]
    """Hash by file name inside the bundle."""


class Baseline(Record):
    """What training data looked like, for drift monitoring."""

    class_fractions: list[float]
    """Share of predicted pixels by class id, over the calibration images."""
    confidence_histogram: list[float]
    """Shares of pixels in ten equal bins of confidence over [0, 1]."""
    mean_confidence: float
    """Mean of the largest softmax probability."""
    images: int
    """Images behind the figures."""
    novel_fraction: float | None = None
    """Share of novel pixels; null where the graph does not tell novelty."""


class GraphSettings(Record):
    """How the graph was made."""

    head: Head
    """Head behind ``labels`` and ``confidence``."""
    input_layout: Literal["uint8_nchw", "uint8_nhwc", "float32_nchw"]
    """Input element type and axes; float32 is in [0, 255]."""
    static_shape: tuple[int, int, int] | None = None
    """Fixed (batch, height, width), or null when dynamic."""
    decoder_stride: float = Field(gt=0)
    """Stride of the decoder's feature map in pixels (a fraction for some vision transformers)."""
    prototypes: int = Field(ge=0)
    """Prototypes for each class in the graph."""

    @field_validator("head", mode="before")
    @classmethod
    def _former_name(cls, value: Any) -> Any:
        return "fused" if value == "mean" else value  # bundles up to 0.1 call the fused head so


class Manifest(Record):
    """``manifest.json`` of a bundle."""

    schema_version: int = BUNDLE_SCHEMA
    """Version of this contract."""
    name: str
    """Model name."""
    version: str
    """Short hash that changes with weights or graph."""
    created: str
    """UTC time, ISO 8601."""
    checkpoint_sha256: str
    """Hash of the checkpoint's ``model.safetensors``."""
    classes: list[ClassInfo]
    """Classes by id."""
    ignore_index: int
    """Mask value that means "no class"."""
    input: InputRule
    """Preprocessing."""
    graph: GraphSettings
    """Graph."""
    files: list[ArtifactFile]
    """Network files; the first ``onnx`` ``fp32`` one is the source of truth."""
    samples: list[Sample]
    """Smoke test images."""
    baseline: Baseline | None
    """Training baseline."""
    training_metrics: dict[str, Any]
    """Metrics of the checkpoint."""
    versions: dict[str, str]
    """Versions of the tools used."""
    git_revision: str | None = None
    """Revision the checkpoint was trained from."""
    adapted: list[Adaptation] | None = None
    """Changes of the classes since that training, the first one first; null: none."""
    atlas: AtlasFiles | None = None
    """Training patches of the prototypes; null: it was exported without."""

    def file(self, name: str) -> ArtifactFile:
        """The record of file ``name``.

        Raises:
            ManifestError: If the bundle has no such file.
        """
        for item in self.files:
            if item.name == name:
                return item
        raise ManifestError(f"the bundle has no file {name}; it has {[f.name for f in self.files]}")

    def servable(self) -> list[ArtifactFile]:
        """Files with all outputs whose parity passed, in manifest order."""
        return [item for item in self.files if item.parity.status == "passed" and item.cut_of is None]

    def cuts(self, name: str) -> list[ArtifactFile]:
        """Graphs cut from file ``name`` whose own parity passed."""
        return [item for item in self.files if item.parity.status == "passed" and item.cut_of == name]


def read_manifest(bundle: str | Path) -> Manifest:
    """Read and validate ``manifest.json`` of a bundle folder (hashes are checked by the callers).

    Raises:
        ManifestError: If it is missing, damaged, or of an unknown schema version.
    """
    path = Path(bundle) / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(
            f"no {MANIFEST_NAME} in {bundle}; make a bundle with: python -m export.onnx CKPT"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path} cannot be read ({error}); export the checkpoint again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != BUNDLE_SCHEMA:
        raise ManifestError(
            f"{path} has schema version {version!r}, this protoseg reads {BUNDLE_SCHEMA}; "
            "export the checkpoint again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise ManifestError(
            f"{path} is not a valid manifest ({explain_validation(error)}); export the checkpoint again"
        ) from error
