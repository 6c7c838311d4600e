"""Finds the bundle to serve and checks what needs no runtime: schema, hashes, parity."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from export.bundle import OPENVINO_PRECISIONS, OpenVino, openvino_parity
from protoseg.errors import DataError
from protoseg.explain.atlas import Atlas, read_atlas
from protoseg.files import sha256_file
from protoseg.manifest import MANIFEST_NAME, ArtifactFile, Manifest, read_manifest
from serving.errors import BundleError
from serving.settings import PROJECT_ROOT, Settings

HOW_TO_MAKE = "make one with: python -m export.onnx CKPT"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what the manifest says."""

    folder: Path
    """Where it is."""
    manifest: Manifest
    """Its contract."""
    artifact: ArtifactFile
    """The file that is served."""
    cuts: tuple[ArtifactFile, ...] = ()
    """Graphs cut from it that answer, on a CPU, requests that need no more."""
    openvino: OpenVino | None = None
    """How OpenVINO runs it; None: ONNX Runtime or TensorRT does."""

    @property
    def path(self) -> Path:
        """The file that is served."""
        return self.folder / self.artifact.name


def _created(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        # a damaged manifest still counts, so that its error is told instead of an older bundle served
        return datetime.fromtimestamp(manifest.stat().st_mtime, UTC).isoformat()


def find_bundle(model: str | None, root: Path | None = None) -> Path:
    """The bundle folder to serve.

    Args:
        model: Bundle or run folder, absolute or relative to the working directory or the project;
            None takes the newest ``runs/*/bundle`` of either.
        root: Project folder; None takes the one this package lies in.

    Raises:
        BundleError: If there is none.
    """
    places = list(dict.fromkeys((Path.cwd(), root or PROJECT_ROOT)))
    if model is not None:
        for place in places:
            for folder in (place / Path(model).expanduser(), place / model / "bundle"):
                if (folder / MANIFEST_NAME).is_file():
                    return folder.resolve()
        raise BundleError(f"PROTOSEG_MODEL={model} has no {MANIFEST_NAME}; {HOW_TO_MAKE}")
    for place in places:
        found = sorted(place.glob(f"runs/*/bundle/{MANIFEST_NAME}"), key=_created)
        if found:
            return found[-1].parent.resolve()
    raise BundleError(
        f"no bundle found (no runs/*/bundle in {places[0]}, PROTOSEG_MODEL not set); {HOW_TO_MAKE}"
    )


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    # by its name: caches and deployments hold links, and the hash tells whether what is behind one is meant
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        raise BundleError(f"{folder}: {name} lies outside of the bundle; export it again")
    try:
        actual = sha256_file(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export it again") from error
    if actual != expected:
        raise BundleError(
            f"{path} does not match the manifest (sha256 {actual[:12]}, expected {expected[:12]}); "
            "export it again"
        )


def select_files(manifest: Manifest, settings: Settings) -> list[ArtifactFile]:
    """The files that may be served, best first: proven TensorRT engines, then the ONNX file.

    Raises:
        BundleError: If the wanted kind or precision is missing or its parity did not pass.
    """
    precision = settings.precision
    found: list[ArtifactFile] = []
    if settings.backend in ("auto", "tensorrt") and settings.device != "cpu":
        engines = [f for f in manifest.servable() if f.kind in ("tensorrt", "tensorrt_rtx")]
        found = [f for f in engines if precision in (None, f.precision)]
    if settings.backend == "tensorrt":
        if not found:
            raise BundleError(
                f"the bundle has no proven TensorRT engine{f' of {precision}' if precision else ''}; "
                "make one with: python -m export.tensorrt BUNDLE"
            )
        return found
    wanted = precision or "fp32"
    graphs = [f for f in manifest.files if f.kind == "onnx" and f.cut_of is None]
    files = [f for f in graphs if f.precision == wanted]
    if not files:
        has = ", ".join(sorted({f.precision for f in graphs}))
        raise BundleError(
            f"the bundle has no {wanted} ONNX file (it has {has or 'none'}); export with "
            f"--precision {wanted}, or set PROTOSEG_PRECISION"
        )
    check_parity(files[0])
    return [*found, files[0]]


def select_cuts(manifest: Manifest, artifact: ArtifactFile, settings: Settings) -> tuple[ArtifactFile, ...]:
    """The proven cuts of a graph that mask requests on a CPU may ask for, the preferred one first.

    Bundles of earlier exports have none; then the graph itself answers everything.
    """
    if artifact.kind != "onnx" or settings.device == "cuda":
        return ()
    wanted = ("logits_stride", "labels") if settings.fused else ("labels",)
    found = []
    for name in wanted:
        having = [cut for cut in manifest.cuts(artifact.name) if name in {o.name for o in cut.outputs}]
        found += sorted(having, key=lambda cut: len(cut.outputs))[:1]
    return tuple(found)


def openvino_runtime(artifact: ArtifactFile, settings: Settings) -> OpenVino | None:
    """How OpenVINO is to run a file, when the settings want it.

    Raises:
        BundleError: If the file is not for it or not proven in it.
    """
    if settings.backend != "openvino":
        return None
    if artifact.precision not in OPENVINO_PRECISIONS or settings.device == "cuda":
        wanted = "PROTOSEG_DEVICE=cuda" if settings.device == "cuda" else f"a file of {artifact.precision}"
        raise BundleError(
            f"PROTOSEG_BACKEND=openvino runs files of {' and '.join(OPENVINO_PRECISIONS)} on a CPU, "
            f"not {wanted}"
        )
    runtime: OpenVino = "openvino-bf16" if settings.openvino_precision == "bf16" else "openvino"
    report = openvino_parity(artifact, runtime)
    if report.status != "passed":
        reason = f" ({report.reason})" if report.reason else ""
        raise BundleError(
            f"parity of {artifact.name} in {runtime} is {report.status}{reason}; it is not served so: prove "
            f"it with python -m export.parity BUNDLE --runtime {runtime}"
        )
    return runtime


def check_parity(artifact: ArtifactFile) -> None:
    """Refuse a file that is not proven.

    Raises:
        BundleError: Unless its parity report says passed.
    """
    if artifact.parity.status != "passed":
        reason = f" ({artifact.parity.reason})" if artifact.parity.reason else ""
        raise BundleError(
            f"parity of {artifact.name} is {artifact.parity.status}{reason}; it is not served: "
            "prove it with python -m export.parity BUNDLE"
        )


def check_bundle(folder: Path, settings: Settings) -> list[Bundle]:
    """Read the manifest and check everything that needs no runtime.

    Returns:
        One bundle for each file that may be served, best first.

    Raises:
        UserError: With one line that says what is wrong and what to do.
    """
    manifest = read_manifest(folder)
    artifacts = select_files(manifest, settings)
    if manifest.input.channels not in (1, 3, 4):
        raise BundleError(
            f"the network takes {manifest.input.channels} channels; the service reads images of 1, 3 or 4"
        )
    bundles = []
    for item in artifacts:
        openvino, cuts = openvino_runtime(item, settings), select_cuts(manifest, item, settings)
        if openvino is not None:
            cuts = tuple(cut for cut in cuts if openvino_parity(cut, openvino).status == "passed")
        bundles.append(Bundle(folder, manifest, item, cuts, openvino))
    for bundle in bundles:
        artifact = bundle.artifact
        outputs = {item.name: item.dtype for item in artifact.outputs}
        if outputs.get("labels") != "uint8":
            raise BundleError(
                f"{artifact.name} has no output labels of uint8 (it has {outputs or 'none'}); export it "
                "again with at most 256 classes"
            )
        for file in (artifact, *bundle.cuts):
            _check_file(folder, file.name, file.sha256)
    for sample in manifest.samples:
        for name, expected in sample.sha256.items():
            _check_file(folder, name, expected)
    for name, expected in (manifest.atlas.sha256 if manifest.atlas is not None else {}).items():
        _check_file(folder, name, expected)
    return bundles


def read_bundle_atlas(bundle: Bundle) -> Atlas | None:
    """The training patches of a bundle's prototypes, or None where it was exported without.

    Raises:
        BundleError: If they are damaged, or of other classes.
    """
    files = bundle.manifest.atlas
    if files is None:
        return None
    try:
        atlas = read_atlas(bundle.folder / files.folder)
    except DataError as error:
        raise BundleError(f"{error}; then export it again") from error
    names, strips = [item.name for item in bundle.manifest.classes], {item.strip for item in atlas.prototypes}
    if atlas.classes != names or {f"{files.folder}/{name}" for name in strips} - set(files.sha256):
        raise BundleError(f"{bundle.folder}: its training patches are of another network; export it again")
    return atlas
