"""Bundle to TensorRT engine: ``python -m export.tensorrt BUNDLE [--flavor rtx]``."""

from __future__ import annotations

import argparse
import hashlib
import logging
import shlex
import sys
from pathlib import Path

from export.bundle import source_of, verify_bundle, write_manifest
from export.engines.audit import AUDIT_KEY, Audit, audit_engine, source_failure
from export.engines.build import BuildSettings, Built, build
from export.engines.cache import default_cache, locked
from export.engines.triton import write_repository
from export.graph.edit import read_model
from export.proof.judge import format_report
from export.proof.prove import prove_engine
from export.runners.contract import RunnerError
from export.runners.cuda import Cuda, GpuInfo, system_name
from export.runners.profiles import Profile, check_profiles, parse_profile
from export.runners.sidecar import Flavor, Sidecar, sidecar_path
from export.runners.tensorrt import EngineRunner
from protoseg.errors import ExportError, guarded
from protoseg.files import sha256_file, write_bytes_whole, write_text_whole
from protoseg.manifest import ArtifactFile, Manifest, ParityReport

FLAVORS: dict[str, Flavor] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
PRECISIONS = ("fp32", "fp16", "int8")


def find_gpu() -> tuple[GpuInfo | None, str]:
    """This machine's first GPU, or the reason why there is none."""
    try:
        cuda = Cuda()
    except RunnerError as error:
        return None, str(error)
    try:
        return cuda.info(), ""
    finally:
        cuda.close()


def engine_name(source: ArtifactFile, settings: BuildSettings, version: str, gpu: GpuInfo | None) -> str:
    """``model.fp16.sm86-trt11.4.0.plan``, so that engines for several machines fit in one bundle."""
    stem = f"{Path(source.name).stem}" if source.precision != "fp32" else "model.fp32"
    if settings.flavor == "tensorrt_rtx":
        chosen = "+".join(c.replace(".", "") for c in settings.compute_capabilities) or "80plus"
        return f"{stem}.sm{chosen}-rtx{version}.plan"
    number = gpu.compute_capability.replace(".", "") if gpu else "?"
    return f"{stem}.sm{number}-trt{version}.plan"


def choose_source(manifest: Manifest, precision: str) -> ArtifactFile:
    """The ONNX file of a precision whose parity passed.

    Raises:
        ExportError: If there is none.
    """
    item = source_of(manifest, precision)
    if item.parity.status != "passed":
        raise ExportError(
            f"{item.name}: parity is {item.parity.status} ({item.parity.reason}); an engine would compute "
            "the same, export the checkpoint again"
        )
    return item


def describe(
    source: ArtifactFile, settings: BuildSettings, built: Built, gpu: GpuInfo | None, command: str
) -> Sidecar:
    """The sidecar of a new engine."""
    on_gpu = gpu if settings.flavor == "tensorrt" else None
    return Sidecar(
        flavor=settings.flavor, onnx=source.name, onnx_sha256=source.sha256,
        plan_sha256=hashlib.sha256(built.engine).hexdigest(), precision=source.precision,
        tensorrt=built.version, gpu=on_gpu.name if on_gpu else None,
        compute_capabilities=[on_gpu.compute_capability] if on_gpu else list(settings.compute_capabilities),
        cuda_driver=gpu.cuda_driver if gpu else None, system=system_name(),
        hardware_compatibility=settings.hardware_compatibility,
        version_compatible=settings.version_compatible, tf32=settings.tf32,
        workspace_gib=settings.workspace_gib, optimization_level=settings.optimization_level,
        profiles=list(settings.profiles), inputs=source.inputs, outputs=source.outputs,
        build_seconds=built.seconds, command=command,
    )  # fmt: skip


def prove(
    bundle: Path, manifest: Manifest, item: ArtifactFile, profiles: list[Profile], why: str
) -> tuple[ParityReport, str | None]:
    """Compare the engine with its ONNX file if this machine can run it.

    Args:
        bundle: Bundle folder with the engine in place.
        manifest: Its manifest.
        item: The engine's record.
        profiles: Its profiles.
        why: Why there is no GPU, or an empty string.

    Returns:
        The report, and what the engine tells of its layers when it could be loaded.
    """
    if why:
        return ParityReport(status="not_run", reason=f"built here, not run: {why}"), None
    try:
        runner = EngineRunner(bundle / item.name)
    except RunnerError as error:
        return ParityReport(status="not_run", reason=f"built here, not run: {error}"), None
    with runner:
        report = prove_engine(
            bundle, manifest, item, runner,
            lambda *sizes: not profiles or any(p.contains(sizes) for p in profiles),
        )  # fmt: skip
        return report, runner.layer_information()


def build_into(
    bundle: Path, precision: str, settings: BuildSettings, *, caches: Path | None, command: str
) -> ArtifactFile:
    """Build an engine into a bundle and prove it where it can run.

    Args:
        bundle: Bundle folder.
        precision: ``fp32``, ``fp16`` or ``int8``: which ONNX file.
        settings: How.
        caches: Folder of caches, or None for none.
        command: Command that builds it again, for the sidecar.

    Returns:
        The engine's record in the manifest.

    Raises:
        ExportError: If the bundle has no such ONNX file, or the engine cannot be built.
    """
    manifest = verify_bundle(bundle)
    source = choose_source(manifest, precision)
    gpu, why = find_gpu()
    if settings.flavor == "tensorrt" and gpu is None:
        raise ExportError(
            f"TensorRT builds an engine on the GPU that will run it: {why}; --flavor rtx builds without one"
        )
    if failure := source_failure(read_model(bundle / source.name), source.precision, source.notes):
        raise ExportError(f"{source.name}: {failure}; an engine would be no {precision}, export it again")
    infos = [*source.inputs, *source.outputs]
    if caches is None:
        built = build(bundle / source.name, settings, gpu, infos, None)
    else:
        with locked(caches / "build"):
            built = build(bundle / source.name, settings, gpu, infos, caches)
    engine = bundle / engine_name(source, settings, built.version, gpu)
    sidecar = describe(source, settings, built, gpu, command)
    write_bytes_whole(engine, built.engine, flush=True)
    write_text_whole(sidecar_path(engine), sidecar.model_dump_json(indent=2) + "\n", flush=True)
    item = ArtifactFile(
        name=engine.name, sha256=sha256_file(engine), size=len(built.engine), kind=settings.flavor,
        precision=source.precision, opset=source.opset, inputs=source.inputs, outputs=source.outputs,
        sidecar=sidecar_path(engine).name, source=source.name,
        parity=ParityReport(status="not_run", reason="not compared yet"),
        notes={"build_seconds": round(built.seconds, 2), "messages": built.messages[:8]},
    )  # fmt: skip
    others = [f for f in manifest.files if f.name != item.name]
    # before the proof: who stops that must not be left with an engine that the manifest does not know
    write_manifest(bundle, manifest.model_copy(update={"files": [*others, item]}))
    report, information = prove(bundle, manifest, item, list(settings.profiles), why)
    found = audit_engine(bundle, manifest, item, information)
    if found.failure:
        report = report.model_copy(update={"status": "failed", "reason": found.failure})
    notes = {**item.notes, AUDIT_KEY: found.record()}
    item = item.model_copy(update={"parity": report, "notes": notes})
    write_manifest(bundle, manifest.model_copy(update={"files": [*others, item]}))
    return item


def triton_files(manifest: Manifest, item: ArtifactFile) -> list[ArtifactFile]:
    """What Triton can run of an engine and the ONNX file behind it.

    Raises:
        ExportError: If it is neither.
    """
    found = [item] if item.kind == "tensorrt" else []
    if item.precision != "int8":  # see OrtRunner's exact_qdq: Triton's ONNX Runtime would fuse wrongly
        found.append(choose_source(manifest, item.precision))
    if not found:
        raise ExportError(
            "--triton: Triton runs neither RTX engines nor int8 ONNX files; use --precision fp16"
        )
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt",
        description="Build a TensorRT engine from a bundle's ONNX file, with a sidecar that says what it was "
        "built for, and compare it with that file where a GPU is present.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument(
        "--flavor", choices=tuple(FLAVORS), default="tensorrt",
        help="tensorrt builds on the GPU that will run it; rtx (TensorRT for RTX) needs no GPU to build",
    )  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="ONNX file (default: fp16)")
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME:MIN:OPT:MAX",
        help="shapes BxHxW that the engine takes, as default:1x256x256:1x512x512:8x1024x1024; repeatable",
    )  # fmt: skip
    parser.add_argument("--workspace", type=float, metavar="GIB", help="largest workspace in GiB")
    parser.add_argument("--no-tf32", action="store_true", help="keep float32 convolutions exact")
    parser.add_argument(
        "--hardware-compatibility", choices=("none", "same_cc", "ampere+"), default="none",
        help="GPUs the engine runs on (tensorrt)",
    )  # fmt: skip
    parser.add_argument(
        "--version-compatible", action="store_true", help="run on later TensorRT versions (tensorrt)"
    )
    parser.add_argument("--optimization-level", type=int, metavar="N", help="0 to 5")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="X.Y",
        help="GPUs the engine runs on (rtx), repeatable; default: Ampere and later",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, help="folder of engine and timing caches (default: the user's)")
    parser.add_argument("--no-cache", action="store_true", help="build anew and keep nothing")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="also write a Triton model repository")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build an engine; exit code 1 when it cannot be built or its parity fails."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = sys.argv[1:] if argv is None else argv

    def body() -> int:
        manifest = verify_bundle(args.bundle)
        profiles = check_profiles([parse_profile(text) for text in args.profile], manifest)
        settings = BuildSettings(
            flavor=FLAVORS[args.flavor], profiles=tuple(profiles), workspace_gib=args.workspace,
            tf32=not args.no_tf32, hardware_compatibility=args.hardware_compatibility,
            version_compatible=args.version_compatible, optimization_level=args.optimization_level,
            compute_capabilities=tuple(args.compute_capability),
        )  # fmt: skip
        settings.check()
        caches = None if args.no_cache else (args.cache or default_cache())
        command = f"python -m export.tensorrt {shlex.join(given)}"
        item = build_into(args.bundle, args.precision, settings, caches=caches, command=command)
        seconds = item.notes["build_seconds"]
        how = f"built in {seconds} s" if seconds else "from the cache"
        sys.stdout.write(f"{args.bundle / item.name}: {item.size / 1e6:.1f} MB, {how}\n")
        sys.stdout.write(f"  {Audit(**item.notes[AUDIT_KEY])}\n")
        sys.stdout.write(format_report(item.name, item.parity) + "\n")
        if args.triton is not None:
            for source in triton_files(manifest, item):
                folder = write_repository(args.triton, args.bundle, manifest, source, profiles)
                sys.stdout.write(f"Triton model: {folder}\n")
        return 1 if item.parity.status in ("failed", "inconclusive") else 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
