"""Stand-ins for TensorRT and the CUDA driver: they check the runner's bookkeeping, not any GPU.

The fake engine answers ``labels = image[:, 0] > 127`` from memory that the runner itself managed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.runners.cuda import GpuInfo

GPU = GpuInfo("Fake GPU", "8.6", 10, "13.0", "Linux x86_64")


class FakeCuda:
    """GPU memory as a dictionary of byte arrays."""

    def __init__(self, info: GpuInfo = GPU) -> None:
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        self.recorded: list[Any] | None = None
        self.graphs: dict[int, list[Any]] = {}
        self.launches = 0
        self.closed = False
        self._info = info
        self._next = 4096

    def info(self) -> GpuInfo:
        return self._info

    def activate(self) -> None:
        assert not self.closed

    def allocate(self, size: int) -> int:
        self._next += 1 << 20
        self.memory[self._next] = np.zeros(size, np.uint8)
        return self._next

    def free(self, address: int) -> None:
        del self.memory[address]

    def stream(self) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        assert stream == 7

    def synchronize(self, stream: int) -> None:
        assert stream == 7

    def upload(self, address: int, array: np.ndarray[Any, Any], stream: int) -> None:
        raw = np.frombuffer(array.tobytes(), np.uint8)
        self.memory[address][: raw.size] = raw

    def download(self, address: int, shape: tuple[int, ...], dtype: Any, stream: int) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.memory[address][:size].tobytes(), dtype).reshape(shape)

    def begin_capture(self, stream: int) -> None:
        self.recorded = []

    def end_capture(self, stream: int) -> int:
        assert self.recorded is not None
        self.graphs[99] = self.recorded
        self.recorded = None
        return 99

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self.graphs[graph]:
            work()

    def destroy_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def close(self) -> None:
        self.closed = True


class FakeContext:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profile = -1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.shape[2] != 13

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], *self.shape[2:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shape, addresses = self.shape, dict(self.addresses)

        def work() -> None:
            size = int(np.prod(shape))
            image = self.cuda.memory[addresses["image"]][:size].reshape(shape)
            labels = (image[:, 0] > 127).astype(np.uint8)
            self.cuda.memory[addresses["labels"]][: labels.size] = labels.ravel()

        if self.cuda.recorded is not None:
            self.cuda.recorded.append(work)
        else:
            work()
        return True


class FakeModule:
    """What the runner uses of the ``tensorrt`` module."""

    __name__ = "tensorrt"
    __version__ = "11.4.0"

    class ILogger:
        WARNING = 2

        def __init__(self) -> None:
            pass

    def __init__(self, cuda: FakeCuda, *, loads: bool = True) -> None:
        self.cuda, self.loads = cuda, loads

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        module = self

        class Engine:
            def create_execution_context(self) -> FakeContext:
                return FakeContext(module.cuda)

        class Runtime:
            def deserialize_cuda_engine(self, data: bytes) -> Any:
                if not module.loads:
                    logger.log(1, "magic tag does not match")
                    return None
                return Engine()

        return Runtime()
