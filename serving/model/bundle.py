"""Finds the bundle to serve and checks it: schema, hashes, parity, and that it runs here.

``python -m serving.model.bundle [BUNDLE]`` makes the same check as the start of the service.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from protoseg.errors import ManifestError
from protoseg.files import sha256_file
from protoseg.manifest import MANIFEST_NAME, ArtifactFile, Manifest, read_manifest
from serving.errors import BundleError
from serving.settings import PROJECT_ROOT, Settings, SettingsError, load_settings

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
    if not path.resolve().is_relative_to(folder.resolve()):
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
    if settings.backend != "onnx" and settings.device != "cpu":
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
    files = [f for f in manifest.files if f.kind == "onnx" and f.precision == wanted]
    if not files:
        has = ", ".join(sorted({f.precision for f in manifest.files if f.kind == "onnx"}))
        raise BundleError(
            f"the bundle has no {wanted} ONNX file (it has {has or 'none'}); export with "
            f"--precision {wanted}, or set PROTOSEG_PRECISION"
        )
    check_parity(files[0])
    return [*found, files[0]]


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
        BundleError: With one line that says what is wrong and what to do.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        raise BundleError(str(error)) from error
    artifacts = select_files(manifest, settings)
    if manifest.input.channels not in (1, 3, 4):
        raise BundleError(
            f"the network takes {manifest.input.channels} channels; the service reads images of 1, 3 or 4"
        )
    for artifact in artifacts:
        outputs = {item.name: item.dtype for item in artifact.outputs}
        if outputs.get("labels") != "uint8":
            raise BundleError(
                f"{artifact.name} has no output labels of uint8 (it has {outputs or 'none'}); export it "
                "again with at most 256 classes"
            )
        _check_file(folder, artifact.name, artifact.sha256)
    for sample in manifest.samples:
        for name, expected in sample.sha256.items():
            _check_file(folder, name, expected)
    return [Bundle(folder, manifest, artifact) for artifact in artifacts]


def main(argv: list[str] | None = None) -> int:
    """Check that a bundle can be served on this machine."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.model.bundle",
        description="Check a bundle as the service does at its start: schema, hashes, parity, and a "
        "run of its samples. Settings come from PROTOSEG_* variables.",
    )
    parser.add_argument("bundle", nargs="?", help="bundle folder (default: as the service finds it)")
    args = parser.parse_args(argv)
    from serving.model.model import open_engine

    try:
        settings = load_settings()
        engine = open_engine(find_bundle(args.bundle or settings.model), settings)
        line = f"{engine.bundle.folder}: {engine.bundle.artifact.name} runs on {engine.runtime}"
        engine.close()
    except (BundleError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{line}; samples agree to {engine.sample_agreement:.4%}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
