"""Builds an engine from an ONNX file with TensorRT or TensorRT-RTX: exactly the graph's own precision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines.cache import Cache
from export.runners.profiles import Profile
from export.runners.sidecar import Compatibility, Flavor
from export.runners.tensorrt import import_flavor, make_logger
from protoseg.errors import ExportError
from protoseg.files import sha256_file
from protoseg.manifest import TensorInfo

MAX_MESSAGES = 8
# RTX's enumeration at 1.7; it has neither 9.0 (Hopper) nor 8.7 (Orin)
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


class BuildError(ExportError):
    """An engine that cannot be built; the text holds all messages of parser and builder."""


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built."""

    flavor: Flavor
    """Builder."""
    profiles: Sequence[Profile]
    """Shapes; empty for a graph of fixed shape."""
    workspace_gib: float | None = None
    """Largest workspace; None leaves the builder's default."""
    tf32: bool = True
    """Whether float32 convolutions may use TF32."""
    hardware_compatibility: Compatibility = "none"
    """GPUs the engine runs on (``tensorrt`` only)."""
    version_compatible: bool = False
    """Whether it runs on later versions (``tensorrt`` only)."""
    optimization_level: int | None = None
    """0 to 5; None leaves the builder's default."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs the engine runs on (``tensorrt_rtx`` only); empty for Ampere and later."""

    def check(self) -> None:
        """Refuse what the builder cannot do.

        Raises:
            BuildError: Naming the option.
        """
        if self.flavor == "tensorrt_rtx":
            unknown = [c for c in self.compute_capabilities if c not in RTX_CAPABILITIES]
            if unknown:
                known = ", ".join(RTX_CAPABILITIES)
                raise BuildError(f"--compute-capability {unknown[0]}: TensorRT-RTX knows {known}")
            if self.hardware_compatibility != "none" or self.version_compatible:
                raise BuildError(
                    "--hardware-compatibility and --version-compatible are for --flavor tensorrt; RTX "
                    "engines name their GPUs with --compute-capability"
                )
        elif self.compute_capabilities:
            raise BuildError("--compute-capability is for --flavor rtx; an engine is built on its own GPU")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise BuildError(f"--optimization-level must be 0 to 5, got {self.optimization_level}")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise BuildError(f"--workspace must be positive, got {self.workspace_gib}")


@dataclass(frozen=True)
class Built:
    """An engine and what the builder said of it."""

    engine: bytes
    """Serialised."""
    version: str
    """Version of the builder."""
    seconds: float
    """Time of the build; 0 from the cache."""
    messages: list[str]
    """Warnings."""


def _join(messages: list[str]) -> str:
    shown = [" ".join(m.split())[:300] for m in messages[:MAX_MESSAGES]]
    more = f" (and {len(messages) - MAX_MESSAGES} more)" if len(messages) > MAX_MESSAGES else ""
    return "; ".join(shown) + more


def _parse(module: Any, parser: Any, onnx: Path, messages: list[str]) -> None:
    if parser.parse_from_file(str(onnx)):
        return
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = f" at {error.node_operator()} {error.node_name()}".rstrip() if error.node_operator() else ""
        errors.append(f"{str(error.code()).rsplit('.', 1)[-1]}{place}: {error.desc()}")
    raise BuildError(f"{onnx.name} cannot be parsed by {module.__name__}: {_join(errors or messages)}")


def _configure(module: Any, builder: Any, network: Any, settings: BuildSettings, messages: list[str]) -> Any:
    config = builder.create_builder_config()
    # so that the engine can be asked for the types of its layers; takes no room (see audit)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if settings.workspace_gib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, int(settings.workspace_gib * 2**30))
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    (config.set_flag if settings.tf32 else config.clear_flag)(module.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        levels = module.HardwareCompatibilityLevel
        same = settings.hardware_compatibility == "same_cc"
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY if same else levels.AMPERE_PLUS
    if settings.compute_capabilities:
        config.num_compute_capabilities = len(settings.compute_capabilities)
        for index, text in enumerate(settings.compute_capabilities):
            capability = getattr(module.ComputeCapability, "SM" + text.replace(".", ""))
            config.set_compute_capability(capability, index)
    for profile in settings.profiles:
        item = builder.create_optimization_profile()
        tensor = network.get_input(0)
        shapes = [_full_shape(tuple(tensor.shape), s) for s in (profile.min, profile.opt, profile.max)]
        item.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(item) < 0:
            raise BuildError(f"profile {profile} is refused: {_join(messages) or 'no message'}")
    return config


def _full_shape(declared: tuple[int, ...], sizes: tuple[int, int, int]) -> tuple[int, ...]:
    """(batch, height, width) in the place of the -1 axes of the network's input."""
    rest = iter(sizes)
    return tuple(next(rest) if axis < 0 else axis for axis in declared)


def _check_types(module: Any, count: int, get: Any, declared: dict[str, str]) -> None:
    for index in range(count):
        tensor = get(index)
        dtype = module.nptype(tensor.dtype).__name__
        if declared.get(tensor.name, dtype) != dtype:
            raise BuildError(f"{tensor.name} became {dtype}, the ONNX file declares {declared[tensor.name]}")


def cache_facts(onnx: Path, settings: BuildSettings, version: str, gpu: Any) -> dict[str, Any]:
    """Everything an engine depends on."""
    return {
        "onnx": sha256_file(onnx),
        "version": version,
        "verbosity": "detailed",
        "gpu": None if gpu is None else vars(gpu),
        "settings": {**vars(settings), "profiles": [p.model_dump() for p in settings.profiles]},
    }


def build(
    onnx: Path, settings: BuildSettings, gpu: Any, infos: Sequence[TensorInfo], caches: Path | None
) -> Built:
    """Build an engine, or take it from the cache.

    Args:
        onnx: ONNX file.
        settings: How.
        gpu: This machine's GPU, or None (``tensorrt_rtx`` only).
        infos: Inputs and outputs that the ONNX file declares; the engine must keep their types.
        caches: Folder of caches, or None for none.

    Returns:
        The engine.

    Raises:
        BuildError: With all messages of parser and builder.
        RunnerError: If TensorRT is not installed.
    """
    settings.check()
    module = import_flavor(settings.flavor)
    version = str(module.__version__)
    facts = cache_facts(onnx, settings, version, gpu)
    engines = Cache(caches / "engines", ".plan") if caches else None
    stored = engines.read(facts) if engines else None
    if stored is not None:
        return Built(stored, version, 0.0, [])
    messages: list[str] = []
    timing_facts = {"version": version, "gpu": facts["gpu"]}
    timings = Cache(caches / "timings", ".cache") if caches and settings.flavor == "tensorrt" else None

    # logger, builder, network and parser hold raw pointers to each other: they end together, here
    logger = make_logger(module, messages)
    builder = module.Builder(logger)
    flags = module.NetworkDefinitionCreationFlag
    strongly = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(strongly)
    parser = module.OnnxParser(network, logger)
    _parse(module, parser, onnx, messages)
    declared = {info.name: info.dtype for info in infos}
    _check_types(module, network.num_inputs, network.get_input, declared)
    _check_types(module, network.num_outputs, network.get_output, declared)
    config = _configure(module, builder, network, settings, messages)
    if timings is not None:
        timing = config.create_timing_cache(timings.read(timing_facts) or b"")
        config.set_timing_cache(timing, False)
    start = time.perf_counter()
    built = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if built is None:
        raise BuildError(f"{settings.flavor} cannot build {onnx.name}: {_join(messages) or 'no message'}")
    data = bytes(built)
    if timings is not None:
        timings.write(timing_facts, bytes(config.get_timing_cache().serialize()))
    if engines is not None:
        engines.write(facts, data)
    del parser, config, network, builder, logger
    return Built(data, version, seconds, messages)
