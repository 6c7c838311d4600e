"""The few calls of the CUDA driver that a runner needs, through ctypes: no torch, no toolkit."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runners.contract import RunnerError

CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS = 75, 76, 16
CAPTURE_THREAD_LOCAL = 1
NON_BLOCKING = 1


@dataclass(frozen=True)
class GpuInfo:
    """What an engine depends on."""

    name: str
    """Product name."""
    compute_capability: str
    """As ``8.6``."""
    multiprocessors: int
    """Number of SMs."""
    cuda_driver: str
    """Highest CUDA version of the driver, as ``13.0``."""
    system: str
    """Operating system and CPU architecture, as ``Linux x86_64``."""


def system_name() -> str:
    """Operating system and CPU architecture."""
    return f"{platform.system()} {platform.machine()}"


def load_driver() -> Any:
    """The driver's library.

    Raises:
        RunnerError: If there is none.
    """
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise RunnerError(f"no NVIDIA driver on this machine ({name} cannot be loaded)") from None


class Cuda:
    """The driver with the primary context of one GPU.

    Args:
        device: GPU number.

    Raises:
        RunnerError: If there is no driver or no such GPU.
    """

    def __init__(self, device: int = 0) -> None:
        self._driver = load_driver()
        count = ctypes.c_int()
        code = self._driver.cuInit(0) or self._driver.cuDeviceGetCount(ctypes.byref(count))
        if code or not 0 <= device < count.value:
            raise RunnerError(
                f"GPU {device} is not available: the driver reports {count.value} device(s), code {code}"
            )
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.activate()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(code, ctypes.byref(text))
            raise RunnerError(f"{name} failed: {(text.value or b'unknown error').decode()} ({code})")

    def activate(self) -> None:
        """Make the context current on this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def info(self) -> GpuInfo:
        """What an engine depends on."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, self._device)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return GpuInfo(
            name=name.value.decode(),
            compute_capability=f"{self._attribute(CAPABILITY_MAJOR)}.{self._attribute(CAPABILITY_MINOR)}",
            multiprocessors=self._attribute(MULTIPROCESSORS),
            cuda_driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
            system=system_name(),
        )

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of GPU memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def stream(self) -> int:
        """A new stream that does not wait for the default one."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), NON_BLOCKING)
        return int(handle.value or 0)

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to GPU memory; it must live until the stream is synchronised."""
        source = array.ctypes.data_as(ctypes.c_void_p)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream))

    def download(self, address: int, shape: tuple[int, ...], dtype: Any, stream: int) -> NDArray[Any]:
        """A new array that is filled once the stream is synchronised."""
        array = np.empty(shape, dtype)
        target = array.ctypes.data_as(ctypes.c_void_p)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))
        return array

    def begin_capture(self, stream: int) -> None:
        """Record what is sent to a stream instead of running it."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """A launchable graph of what was recorded."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return int(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Run a graph on a stream."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        """Release the primary context."""
        if self._context.value:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = ctypes.c_void_p()
