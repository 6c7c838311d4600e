"""What every runner is: the contract, its error, and the checks that all of them make.

Shape legend: ``B`` batch, ``C`` channels, ``H W`` image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from protoseg.errors import ExportError
from protoseg.files import sha256_file
from protoseg.manifest import TensorInfo

Array = NDArray[Any]
Layout = Literal["uint8_nchw", "uint8_nhwc", "float32_nchw"]


class RunnerError(ExportError):
    """A network file that cannot run here, or an input that it does not take."""


class DeviceArray(Protocol):
    """An array in GPU memory (torch, CuPy, ...), contiguous."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Address, shape and type; see Numba's CUDA array interface."""
        ...


Image = Array | DeviceArray


class Runner(Protocol):
    """A loaded network: a context manager that is called with a batch of images.

    Attributes:
        inputs: Graph inputs; there is one, ``image``.
        outputs: Graph outputs.
        provider: What runs it: ``cpu``, ``cuda`` or ``tensorrt``.
        description: Runtime, version and provider, for logs and reports.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    provider: str
    description: str

    def __call__(self, image: Image) -> dict[str, Array]:
        """A batch of images -> every output by name, as numpy arrays.

        Args:
            image: Of the dtype and axes of ``inputs[0]``: by default ``(B, C, H, W)`` uint8.

        Raises:
            RunnerError: If dtype or shape do not fit.
        """
        ...

    def close(self) -> None:
        """Give memory back; calling it again does nothing."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def adapt(batch: NDArray[np.uint8], layout: Layout) -> Array:
    """A (B, C, H, W) uint8 batch in the element type and axes of a graph."""
    if layout == "uint8_nhwc":
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
    return batch.astype(np.float32) if layout == "float32_nchw" else batch


def is_device_array(image: object) -> bool:
    """Whether ``image`` lies in GPU memory."""
    return not isinstance(image, np.ndarray) and hasattr(image, "__cuda_array_interface__")


def device_view(image: Any) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Address, shape and dtype of an array in GPU memory.

    Raises:
        RunnerError: If it is not contiguous.
    """
    interface = image.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None:
        dense = tuple(
            int(np.prod(shape[i + 1 :], dtype=np.int64)) * dtype.itemsize for i in range(len(shape))
        )
        if tuple(strides) != dense:
            raise RunnerError(f"device image of shape {shape} is not contiguous; copy it first")
    return int(interface["data"][0]), shape, dtype


def check_input(info: TensorInfo, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Compare an image with what the graph declares.

    Raises:
        RunnerError: Naming what was got and expected.
    """
    if dtype.name != info.dtype:
        raise RunnerError(f"image has dtype {dtype.name}, expected {info.dtype}; convert it first")
    fits = len(shape) == len(info.shape) and all(
        size > 0 and (isinstance(axis, str) or axis == size)
        for axis, size in zip(info.shape, shape, strict=True)
    )
    if not fits:
        raise RunnerError(
            f"image has shape {shape}, expected ({', '.join(map(str, info.shape))}); resize it, or "
            "export with other --input or --static settings"
        )


def check_hash(path: Path, expected: str) -> None:
    """Compare a file with the hash that the manifest gives.

    Raises:
        RunnerError: If it is missing or changed.
    """
    if not path.is_file():
        raise RunnerError(f"{path} is missing from the bundle; export the checkpoint again")
    found = sha256_file(path)
    if found != expected:
        raise RunnerError(
            f"{path} was changed after it was exported (hash {found[:12]}, expected {expected[:12]}); "
            "export the checkpoint again, or copy the bundle again"
        )
