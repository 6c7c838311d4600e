"""A network in OpenVINO on a CPU, in float32 or, where the processor has it, in bfloat16."""

from __future__ import annotations

import importlib
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

from export.runners.contract import Array, Image, Runner, RunnerError, check_input, is_device_array
from protoseg.manifest import TensorInfo


def import_openvino() -> Any:
    """The openvino module.

    Raises:
        RunnerError: If it is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        raise RunnerError(
            f"openvino cannot be imported ({error}): pip install 'protoseg[openvino]'"
        ) from error


def processor_and_version() -> dict[str, str]:
    """What a proof in OpenVINO was made with.

    Raises:
        RunnerError: If it is not installed.
    """
    module = import_openvino()
    name = module.Core().get_property("CPU", "FULL_DEVICE_NAME")
    return {"processor": str(name).strip(), "version": str(module.__version__).split("-")[0]}


class OpenVinoRunner(Runner):
    """A network in OpenVINO.

    Args:
        model: ONNX file, or its bytes.
        bf16: Compute in bfloat16 what may be; a processor without it is an error.
        intra_threads: Threads for one call; None takes all cores.
        parallel: Calls at a time; more of them wait.

    Raises:
        RunnerError: If the file cannot be loaded or would be computed in another precision.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        bf16: bool = False,
        intra_threads: int | None = None,
        parallel: int = 1,
    ) -> None:
        module = import_openvino()
        what = "the network" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise RunnerError(f"{model} does not exist; export the checkpoint again")
        core = module.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if bf16 and "BF16" not in able:
            raise RunnerError(
                f"this processor does not compute bfloat16 (OpenVINO finds {', '.join(able)}); use float32"
            )
        # pinned threads of several worker processes would all sit on the first cores
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "NUM_STREAMS": parallel,
            "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        if intra_threads is not None:
            options["INFERENCE_NUM_THREADS"] = intra_threads * parallel
        try:
            source = io.BytesIO(model) if isinstance(model, bytes) else str(model)
            self._compiled: Any = core.compile_model(core.read_model(source), "CPU", options)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:300]
            raise RunnerError(f"OpenVINO cannot load {what}: {text}") from error
        found = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        if found != options["INFERENCE_PRECISION_HINT"]:
            raise RunnerError(
                f"OpenVINO computes {what} in {found}, not {options['INFERENCE_PRECISION_HINT']}"
            )
        self.provider = "openvino-bf16" if bf16 else "openvino"
        self.description = (
            f"openvino {module.__version__.split('-')[0]} cpu {'bfloat16' if bf16 else 'float32'}"
        )
        self.inputs = [_tensor_info(port) for port in self._compiled.inputs]
        self.outputs = [_tensor_info(port) for port in self._compiled.outputs]
        # a request holds the buffers of one call
        self._requests = threading.local()

    def __call__(self, image: Image) -> dict[str, Array]:
        """See ``Runner.__call__``; several threads may call at a time."""
        if self._compiled is None:
            raise RunnerError("the runner is closed; load it again")
        if is_device_array(image):
            raise RunnerError(
                "image lies in GPU memory, the network runs in OpenVINO on the CPU; copy it first"
            )
        array = np.ascontiguousarray(image)
        check_input(self.inputs[0], array.shape, array.dtype)
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        try:
            values = request.infer({0: array}, share_inputs=True)
        except RuntimeError as error:
            shape, text = "x".join(map(str, array.shape)), " ".join(str(error).split())[:300]
            raise RunnerError(
                f"OpenVINO cannot run the network on images of shape {shape}: {text}"
            ) from error
        return {info.name: values[index] for index, info in enumerate(self.outputs)}

    def close(self) -> None:
        """See ``Runner.close``."""
        self._compiled, self._requests = None, threading.local()


# a tensor can have further names, of nodes that fell away; an output's node keeps that of the ONNX file
SINK = "/sink_port_0"


def _tensor_info(port: Any) -> TensorInfo:
    name = port.get_node().get_friendly_name().removesuffix(SINK)
    shape = [axis.get_length() if axis.is_static else "unknown" for axis in port.get_partial_shape()]
    return TensorInfo(name=name, dtype=port.get_element_type().to_dtype().name, shape=shape)
