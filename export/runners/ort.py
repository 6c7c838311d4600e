"""A network in ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.runners.contract import (
    Array,
    Image,
    Runner,
    RunnerError,
    check_input,
    device_view,
    is_device_array,
)
from export.runners.cuda import Cuda
from protoseg.manifest import TensorInfo

ORT_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ORT_TYPES = {
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int32)": "int32",
    "tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16",
}  # fmt: skip


def default_session_options(intra_threads: int | None, severity: int = 3) -> Any:
    """ONNX Runtime session options: given threads, no spinning, quiet."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    if intra_threads is not None:
        options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    # spinning threads burn the CPU that the next request needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = severity
    return options


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        RunnerError: If it is missing, or two distributions fight over its folder.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise RunnerError("ONNX Runtime is not installed: pip install onnxruntime-gpu (or onnxruntime)")
    import onnxruntime as ort

    if not hasattr(ort, "InferenceSession"):
        raise RunnerError(
            "onnxruntime is broken, as when onnxruntime and onnxruntime-gpu were both installed and one "
            "was removed: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    return ort


def installed(*distributions: str) -> dict[str, str]:
    """Version by name of those that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def onnxruntime_distributions() -> list[str]:
    """Installed distributions that share the ``onnxruntime`` folder, as ``name version``."""
    known = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
    return [f"{name} {version}" for name, version in installed(*known).items()]


def why_no_cuda() -> str:
    """The missing piece when ONNX Runtime did not take the GPU, found by loading its libraries."""
    ort = import_onnxruntime()
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.is_file() and "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime has no CUDA support; install onnxruntime-gpu in its place"
    try:
        Cuda().close()
    except RunnerError as error:
        return str(error)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"a CUDA library cannot be loaded ({error})"
    return "ONNX Runtime gave no reason; run it with a log severity of 0"


class OrtRunner(Runner):
    """A network in ONNX Runtime.

    Args:
        model: ONNX file, or its bytes.
        provider: ``cpu`` or ``cuda``; falling back silently is an error.
        intra_threads: Threads for one call; None takes ONNX Runtime's default (all cores).
        device: GPU number.
        exact_qdq: Compute quantise-dequantise pairs one by one. Needed for ``int8`` files (for TensorRT,
            with half-precision scales): fusing those, ONNX Runtime 1.31 gives wrong numbers on a CPU.
        cuda_options: Options of the CUDA provider by ONNX Runtime's names, for measurements.

    Raises:
        RunnerError: If the file cannot be loaded or the provider did not come up.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        provider: Literal["cpu", "cuda"] = "cpu",
        *,
        intra_threads: int | None = None,
        device: int = 0,
        exact_qdq: bool = False,
        cuda_options: Mapping[str, str] | None = None,
    ) -> None:
        ort = import_onnxruntime()
        name = model if isinstance(model, bytes) else str(model)
        if isinstance(name, str) and not Path(name).is_file():
            raise RunnerError(f"{name} does not exist; export the checkpoint again")
        wanted = ORT_PROVIDERS[provider]
        # errors are collected here as exceptions; its own log would say them twice
        options = default_session_options(intra_threads, severity=4)
        if exact_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        providers: list[Any] = [wanted]
        if provider == "cuda":
            if hasattr(ort, "preload_dlls"):  # lets CUDA libraries that came as wheels be found
                ort.preload_dlls()
            providers = [(wanted, {"device_id": str(device), **(cuda_options or {})})]
            ort.set_default_logger_severity(4)
        try:
            self._session = ort.InferenceSession(name, options, providers=providers)
        except Exception as error:
            what = "the network" if isinstance(name, bytes) else name
            text = " ".join(str(error).split())[:300]
            raise RunnerError(f"ONNX Runtime cannot load {what}: {text}") from error
        finally:
            if provider == "cuda":
                ort.set_default_logger_severity(2)
        active = self._session.get_providers()[0]
        if active != wanted:
            raise RunnerError(f"{wanted} was asked for, ONNX Runtime fell back to {active}: {why_no_cuda()}")
        self.provider: str = provider
        self.description = f"onnxruntime {ort.__version__} {provider}"
        self.inputs = [_tensor_info(value) for value in self._session.get_inputs()]
        self.outputs = [_tensor_info(value) for value in self._session.get_outputs()]
        self._names = [value.name for value in self.outputs]
        self._device = device

    def __call__(self, image: Image) -> dict[str, Array]:
        """See ``Runner.__call__``; device arrays need ``provider="cuda"`` and the same GPU."""
        if self._session is None:
            raise RunnerError("the runner is closed; load it again")
        if is_device_array(image):
            return self._run_bound(image)
        array = np.ascontiguousarray(image)
        check_input(self.inputs[0], array.shape, array.dtype)
        try:
            values = self._session.run(self._names, {self.inputs[0].name: array})
        except Exception as error:  # ONNX Runtime's own types, for a kernel that cannot take a shape
            shape, text = "x".join(map(str, array.shape)), " ".join(str(error).split())[:300]
            raise RunnerError(
                f"ONNX Runtime cannot run the network on images of shape {shape}: {text}; "
                "if the network only takes one size, export it with --static BxHxW"
            ) from error
        return dict(zip(self._names, values, strict=True))

    def _run_bound(self, image: Image) -> dict[str, Array]:
        if self.provider != "cuda":
            raise RunnerError(f"image lies in GPU memory, the network runs on {self.provider}; copy it first")
        address, shape, dtype = device_view(image)
        check_input(self.inputs[0], shape, dtype)
        binding = self._session.io_binding()
        binding.bind_input(self.inputs[0].name, "cuda", self._device, dtype, shape, address)
        for name in self._names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))

    def close(self) -> None:
        """See ``Runner.close``."""
        self._session = None


def _tensor_info(value: Any) -> TensorInfo:
    dtype = ORT_TYPES.get(value.type)
    if dtype is None:
        raise RunnerError(f"{value.name} has type {value.type}, expected one of {', '.join(ORT_TYPES)}")
    shape = ["unknown" if axis is None else axis for axis in value.shape]
    return TensorInfo(name=value.name, dtype=dtype, shape=shape)
