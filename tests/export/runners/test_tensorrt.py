"""Sidecars, and the engine runner on stand-ins for TensorRT and the driver: its bookkeeping, not any GPU.

The fake engine answers ``labels = image[:, 0] > 127`` from memory that the runner itself managed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.runners.contract import RunnerError
from export.runners.cuda import GpuInfo
from export.runners.profiles import Profile
from export.runners.sidecar import Sidecar, differences, sidecar_path
from export.runners.tensorrt import EngineRunner
from protoseg.files import sha256_file
from protoseg.manifest import TensorInfo

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

    class LayerInformationFormat:
        JSON = "json"

    class ILogger:
        WARNING = 2

        def __init__(self) -> None:
            pass

    def __init__(self, cuda: FakeCuda, *, loads: bool = True) -> None:
        self.cuda, self.loads = cuda, loads

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        module = self

        class Engine:
            def create_engine_inspector(self) -> Any:
                return self

            def get_engine_information(self, form: str) -> str:
                assert form == "json"
                return '{"Layers": ["convolution"]}'

            def create_execution_context(self) -> FakeContext:
                return FakeContext(module.cuda)

        class Runtime:
            def deserialize_cuda_engine(self, data: bytes) -> Any:
                if not module.loads:
                    logger.log(1, "magic tag does not match")
                    return None
                return Engine()

        return Runtime()


SMALL = Profile(name="small", min=(1, 32, 32), opt=(1, 64, 64), max=(2, 64, 96))


LARGE = Profile(name="large", min=(1, 64, 64), opt=(1, 128, 128), max=(1, 256, 256))


def make_sidecar(**changes: Any) -> Sidecar:
    values: dict[str, Any] = {
        "flavor": "tensorrt", "onnx": "model.onnx", "onnx_sha256": "0" * 64, "plan_sha256": "",
        "precision": "fp16", "tensorrt": "11.4.0", "gpu": "Fake GPU", "compute_capabilities": ["8.6"],
        "cuda_driver": "13.0", "system": "Linux x86_64", "hardware_compatibility": "none",
        "version_compatible": False, "tf32": True, "workspace_gib": None, "optimization_level": None,
        "profiles": [SMALL, LARGE], "build_seconds": 1.0, "command": "python -m export.tensorrt BUNDLE",
        "inputs": [TensorInfo(name="image", dtype="uint8", shape=["batch", 3, "height", "width"])],
        "outputs": [TensorInfo(name="labels", dtype="uint8", shape=["batch", "height", "width"])],
    }  # fmt: skip
    return Sidecar(**{**values, **changes})


def write_plan(folder: Path, **changes: Any) -> Path:
    plan = folder / "model.plan"
    plan.write_bytes(b"a plan")
    sidecar = make_sidecar(**{"plan_sha256": sha256_file(plan), **changes})
    sidecar_path(plan).write_text(sidecar.model_dump_json())
    return plan


def open_runner(plan: Path, *, loads: bool = True) -> tuple[EngineRunner, Any]:
    cuda = FakeCuda()
    return EngineRunner(plan, module=FakeModule(cuda, loads=loads), cuda=cuda), cuda


def images(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_runner_bookkeeping(tmp_path: Path) -> None:
    runner, cuda = open_runner(write_plan(tmp_path))
    with runner:
        for shape in ((1, 3, 32, 40), (2, 3, 64, 96), (1, 3, 200, 64), (1, 3, 33, 32)):
            image = images(*shape)
            np.testing.assert_array_equal(runner(image)["labels"], image[:, 0] > 127)
        assert sorted(c.profile for c in runner._contexts.values()) == [0, 1]
        assert cuda.launches == 0
        assert json.loads(runner.layer_information()) == {"Layers": ["convolution"]}
    assert cuda.closed
    assert not cuda.memory
    with pytest.raises(RunnerError, match="closed"):
        runner(images(1, 3, 32, 32))
    runner.close()


def test_fixed_shapes_replay_a_graph(tmp_path: Path) -> None:
    fixed = Profile(name="fixed", min=(1, 32, 48), opt=(1, 32, 48), max=(1, 32, 48))
    runner, cuda = open_runner(write_plan(tmp_path, profiles=[fixed]))
    with runner:
        for seed in range(3):
            image = images(1, 3, 32, 48, seed=seed)
            np.testing.assert_array_equal(runner(image)["labels"], image[:, 0] > 127)
        assert cuda.launches == 2


@pytest.mark.parametrize(
    ("shape", "text"),
    [((1, 3, 16, 32), "fits no profile"), ((3, 3, 64, 64), "fits no profile"),
     ((1, 3, 300, 64), "small:1x32x32:1x64x64:2x64x96"), ((1, 4, 64, 64), "expected")],
)  # fmt: skip
def test_shapes_outside_the_profiles_are_refused(tmp_path: Path, shape: tuple[int, ...], text: str) -> None:
    runner, _ = open_runner(write_plan(tmp_path))
    with runner, pytest.raises(RunnerError, match=text):
        runner(images(*shape))


def test_a_refused_shape_is_an_error(tmp_path: Path) -> None:
    odd = Profile(name="odd", min=(1, 8, 8), opt=(1, 8, 8), max=(1, 64, 64))
    runner, _ = open_runner(write_plan(tmp_path, profiles=[odd]))
    with runner, pytest.raises(RunnerError, match="TensorRT refuses shape"):
        runner(images(1, 3, 13, 16))


def test_an_engine_that_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"magic tag does not match.*run: python -m export\.tensorrt"):
        open_runner(write_plan(tmp_path), loads=False)


def test_a_changed_engine_and_a_missing_sidecar(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    plan.write_bytes(b"b plan")
    with pytest.raises(RunnerError, match="was changed after it was built"):
        open_runner(plan)
    sidecar_path(plan).write_text("{}")
    with pytest.raises(RunnerError, match="cannot be read"):
        open_runner(plan)
    sidecar_path(plan).unlink()
    with pytest.raises(RunnerError, match="is missing"):
        open_runner(plan)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "expected"),
    [
        ({}, "11.4.0", GPU, ""),
        ({}, "11.5.0", GPU, "TensorRT: built with 11.4.0, here 11.5.0"),
        ({"version_compatible": True}, "11.5.0", GPU, ""),
        ({"version_compatible": True}, "11.3.9", GPU, "TensorRT"),
        ({"version_compatible": True}, "12.0.0", GPU, "TensorRT"),
        ({}, "11.4.0", GpuInfo("Other", "8.9", 9, "13.0", "Linux x86_64"), "compute capability"),
        ({}, "11.4.0", GpuInfo("Other", "8.6", 9, "13.0", "Linux x86_64"), "GPU: built on Fake GPU"),
        ({"hardware_compatibility": "same_cc"}, "11.4.0",
         GpuInfo("Other", "8.6", 9, "13.0", "Linux x86_64"), ""),
        ({"hardware_compatibility": "ampere+"}, "11.4.0",
         GpuInfo("Other", "9.0", 9, "13.0", "Linux x86_64"), ""),
        ({"hardware_compatibility": "ampere+"}, "11.4.0",
         GpuInfo("Old", "7.5", 9, "13.0", "Linux x86_64"), "8.0 and later"),
        ({}, "11.4.0", GpuInfo("Fake GPU", "8.6", 10, "13.0", "Windows AMD64"), "system"),
        ({"flavor": "tensorrt_rtx", "compute_capabilities": [], "gpu": None}, "11.4.0",
         GpuInfo("Other", "12.0", 9, "13.0", "Linux x86_64"), ""),
        ({"flavor": "tensorrt_rtx", "compute_capabilities": ["8.6", "8.9"], "gpu": None}, "11.4.0",
         GpuInfo("Other", "12.0", 9, "13.0", "Linux x86_64"), "built for 8.6, 8.9, here 12.0"),
    ],
)  # fmt: skip
def test_the_sidecar_says_which_field_differs(
    changes: dict[str, Any], version: str, gpu: GpuInfo, expected: str
) -> None:
    found = "; ".join(differences(make_sidecar(**changes), version, gpu))
    assert expected in found
    assert bool(expected) == bool(found)


def test_sidecar_is_plain_json(tmp_path: Path) -> None:
    raw = json.loads(sidecar_path(write_plan(tmp_path)).read_text())
    assert raw["profiles"][0]["max"] == [2, 64, 96]
