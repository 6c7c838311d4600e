"""Loads and runs TensorRT engines, after their sidecar has been compared with the machine.

No torch: memory and streams come from the CUDA driver. Nothing in this file has been executed on a GPU
by its authors; docs/export.md says what was tested and how.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

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
from export.runners.sidecar import Flavor, differences, read_sidecar
from protoseg.files import sha256_file


def import_flavor(flavor: Flavor) -> Any:
    """The ``tensorrt`` or ``tensorrt_rtx`` module.

    Raises:
        RunnerError: If it is not installed or cannot be loaded.
    """
    extra = "tensorrt-rtx" if flavor == "tensorrt_rtx" else "tensorrt"
    try:
        return importlib.import_module(flavor)
    except (ImportError, OSError) as error:
        raise RunnerError(
            f"{flavor} cannot be imported ({error}): pip install 'protoseg[{extra}]' (docs/export.md)"
        ) from error


def make_logger(module: Any, messages: list[str]) -> Any:
    """A TensorRT logger that collects warnings and errors."""

    class Collector(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.WARNING and message not in messages:
                messages.append(message)

    return Collector()


class EngineRunner(Runner):
    """A TensorRT engine; calls of several threads queue up.

    Args:
        engine: Engine file with its sidecar.
        device: GPU number.
        module: TensorRT's module; None imports what the sidecar names.
        cuda: CUDA driver; None opens it.

    Raises:
        RunnerError: If the engine was built for another machine, was changed, or cannot be loaded.
    """

    provider = "tensorrt"

    def __init__(self, engine: Path, device: int = 0, *, module: Any = None, cuda: Any = None) -> None:
        self.sidecar = read_sidecar(engine)
        if sha256_file(engine) != self.sidecar.plan_sha256:
            raise RunnerError(f"{engine} was changed after it was built; run: {self.sidecar.command}")
        self._module = module or import_flavor(self.sidecar.flavor)
        self._cuda = cuda or Cuda(device)
        gpu = self._cuda.info()
        found = differences(self.sidecar, self._module.__version__, gpu)
        if found:
            raise RunnerError(
                f"{engine.name} was built for another machine ({'; '.join(found)}); "
                f"run: {self.sidecar.command}"
            )
        self.inputs, self.outputs = self.sidecar.inputs, self.sidecar.outputs
        self.description = f"{self.sidecar.flavor} {self._module.__version__} on {gpu.name}"
        self._lock = threading.Lock()
        self._closed = False
        self._messages: list[str] = []
        # the runtime and its logger must outlive the engine
        self._logger = make_logger(self._module, self._messages)
        self._runtime = self._module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            reasons = "; ".join(self._messages[:3]) or "no message"
            raise RunnerError(f"{engine.name} cannot be loaded ({reasons}); run: {self.sidecar.command}")
        self._stream = self._cuda.stream()
        self._contexts: dict[int, Any] = {}
        self._buffers: dict[str, tuple[int, int]] = {}
        self._graph: tuple[int, dict[str, tuple[int, ...]], int] | None = None

    def __call__(self, image: Image) -> dict[str, Array]:
        """See ``Runner.__call__``; takes arrays in the memory of the same GPU too."""
        with self._lock:
            if self._closed:
                raise RunnerError("the runner is closed; load it again")
            self._cuda.activate()
            if is_device_array(image):
                address, shape, dtype = device_view(image)
                check_input(self.inputs[0], shape, dtype)
                return self._run(shape, address)
            array = np.ascontiguousarray(image)
            check_input(self.inputs[0], array.shape, array.dtype)
            address = self._buffer(self.inputs[0].name, array.nbytes)
            self._cuda.upload(address, array, self._stream)
            return self._run(array.shape, address)

    def layer_information(self) -> str:
        """What TensorRT's inspector tells of the layers, as JSON; types when the build was a detailed one."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        height = self.inputs[0].shape.index("height")
        return shape[0], shape[height], shape[height + 1]

    def _profile(self, shape: tuple[int, ...]) -> int:
        if not self.sidecar.profiles:
            return 0
        sizes = self._sizes(shape)
        for index, profile in enumerate(self.sidecar.profiles):
            if profile.contains(sizes):
                return index
        shown = ", ".join(map(str, self.sidecar.profiles))
        raise RunnerError(
            f"image of batch, height, width {sizes} fits no profile of the engine ({shown}); resize it, or "
            "build with another --profile"
        )

    def _context(self, index: int) -> Any:
        if index not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise RunnerError(f"no execution context: {'; '.join(self._messages[-3:])}")
            if self.sidecar.profiles and not context.set_optimization_profile_async(index, self._stream):
                raise RunnerError(f"profile {index} cannot be set: {'; '.join(self._messages[-3:])}")
            self._contexts[index] = context
        return self._contexts[index]

    def _buffer(self, name: str, size: int) -> int:
        address, capacity = self._buffers.get(name, (0, 0))
        if size > capacity:
            # a captured graph holds the old address
            self._drop_graph()
            if capacity:
                self._cuda.free(address)
                del self._buffers[name]
            self._buffers[name] = (self._cuda.allocate(size), size)
        return self._buffers[name][0]

    def _run(self, shape: tuple[int, ...], address: int) -> dict[str, Array]:
        index = self._profile(shape)
        if self._graph is not None and self._graph[2] == address:
            graph, shapes, _ = self._graph
            self._cuda.launch(graph, self._stream)
            return self._collect(shapes)
        context = self._context(index)
        name = self.inputs[0].name
        if not context.set_input_shape(name, shape):
            raise RunnerError(f"TensorRT refuses shape {shape}: {'; '.join(self._messages[-3:])}")
        context.set_tensor_address(name, address)
        shapes = {}
        for info in self.outputs:
            shapes[info.name] = tuple(int(size) for size in context.get_tensor_shape(info.name))
            if min(shapes[info.name]) < 0:
                raise RunnerError(f"output {info.name} has no shape yet: {shapes[info.name]}")
            size = int(np.prod(shapes[info.name])) * np.dtype(info.dtype).itemsize
            context.set_tensor_address(info.name, self._buffer(info.name, size))
        self._execute(context)
        result = self._collect(shapes)
        if self._fixed():
            self._capture(context, shapes, address)
        return result

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream):
            raise RunnerError(f"TensorRT failed: {'; '.join(self._messages[-3:]) or 'no message'}")

    def _fixed(self) -> bool:
        profiles = self.sidecar.profiles
        return all(p.fixed for p in profiles) and len(profiles) <= 1 and self._graph is None

    def _capture(self, context: Any, shapes: dict[str, tuple[int, ...]], address: int) -> None:
        if not getattr(context, "is_stream_capturable", lambda stream: True)(self._stream):
            return
        self._cuda.begin_capture(self._stream)
        try:
            self._execute(context)
        finally:
            graph = self._cuda.end_capture(self._stream)
        self._graph = (graph, shapes, address)

    def _collect(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
        result = {
            info.name: self._cuda.download(
                self._buffers[info.name][0], shapes[info.name], np.dtype(info.dtype), self._stream
            )
            for info in self.outputs
        }
        self._cuda.synchronize(self._stream)
        return result

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph[0])
            self._graph = None

    def close(self) -> None:
        """See ``Runner.close``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._cuda.activate()
            self._drop_graph()
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._buffers.clear()
            self._contexts.clear()
            self._engine = self._runtime = None
            self._cuda.destroy_stream(self._stream)
            self._cuda.close()
