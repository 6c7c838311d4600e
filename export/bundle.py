"""The bundle folder on disk: its manifest, checked against its own hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from export.runners.contract import check_hash
from protoseg.errors import ExportError
from protoseg.files import write_text_whole
from protoseg.manifest import MANIFEST_NAME, ArtifactFile, Manifest, ParityReport, read_manifest

REJECTED_SUFFIX = ".rejected"
OpenVino = Literal["openvino", "openvino-bf16"]
OPENVINO_PRECISIONS = ("fp32", "int8-cpu")


def check_target(target: Path) -> None:
    """Refuse to replace what is not a bundle.

    Raises:
        ExportError: If ``target`` exists and is neither a bundle nor an empty folder.
    """
    if (
        target.exists()
        and not (target / MANIFEST_NAME).is_file()
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise ExportError(f"{target} exists and is not a bundle; choose another folder with -o")


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, whole or not at all."""
    write_text_whole(bundle / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n", flush=True)


def with_reports(manifest: Manifest, reports: dict[str, ParityReport]) -> Manifest:
    """The manifest with new parity reports by file name."""
    files = [
        item.model_copy(update={"parity": reports.get(item.name, item.parity)}) for item in manifest.files
    ]
    return manifest.model_copy(update={"files": files})


def openvino_parity(item: ArtifactFile, runtime: OpenVino) -> ParityReport:
    """The proof of a file in OpenVINO, which the manifest keeps in its notes."""
    kept = item.notes.get(runtime)
    if kept is None:
        return ParityReport(status="not_run", reason="not compared yet")
    return ParityReport.model_validate(kept["parity"])


def with_openvino(
    manifest: Manifest, runtime: OpenVino, reports: dict[str, ParityReport], told: dict[str, Any]
) -> Manifest:
    """The manifest with proofs in OpenVINO by file name, and what they were made with."""
    files = [
        item.model_copy(
            update={"notes": {**item.notes, runtime: {"parity": reports[item.name].model_dump(), **told}}}
        )
        if item.name in reports
        else item
        for item in manifest.files
    ]
    return manifest.model_copy(update={"files": files})


def verify_bundle(bundle: str | Path) -> Manifest:
    """Read the manifest and compare every file with its hash.

    Raises:
        ManifestError: If the manifest is missing or damaged.
        RunnerError: If a file is missing or changed.
    """
    manifest = read_manifest(bundle)
    for name, digest in file_hashes(manifest).items():
        check_hash(Path(bundle) / name, digest)
    return manifest


def file_hashes(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file that the manifest lists, by name."""
    hashes = {item.name: item.sha256 for item in manifest.files}
    for sample in manifest.samples:
        hashes |= sample.sha256
    return hashes | (manifest.atlas.sha256 if manifest.atlas is not None else {})


def source_of(manifest: Manifest, precision: str = "fp32") -> ArtifactFile:
    """The ONNX file with all outputs in a precision; the fp32 one is the source of truth.

    Raises:
        ExportError: If the bundle has none.
    """
    for item in manifest.files:
        if item.kind == "onnx" and item.precision == precision and item.cut_of is None:
            return item
    more = "" if precision == "fp32" else f" --precision fp32,{precision}"
    raise ExportError(f"the bundle has no {precision} ONNX file; run: python -m export.onnx CKPT{more}")


def weight_note(item: ArtifactFile) -> str:
    """What the width of an ``int8-cpu`` file's weights means for the CPUs it may run on; else empty."""
    if item.precision != "int8-cpu":
        return ""
    bits = item.notes.get("weight_bits")
    if bits == 7:
        return "7-bit weights: exact on x86 CPUs with and without VNNI"
    return (
        "8-bit weights: sums overflow on x86 CPUs without VNNI, its parity holds on CPUs like the one it was "
        "made on; export the checkpoint again"
    )
