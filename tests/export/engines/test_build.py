"""TensorRT-RTX builds without a GPU; TensorRT itself and every run of an engine need one.

``REQUIRE_GPU=1`` turns the skips of GPU tests into failures, so that a GPU machine cannot pass by
skipping.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.engines.audit import audit_engine
from export.engines.build import BuildError, BuildSettings
from export.graph.edit import to_bytes
from export.proof.prove import prove_engine
from export.runners.contract import RunnerError
from export.runners.cuda import Cuda
from export.runners.ort import OrtRunner
from export.runners.sidecar import read_sidecar
from export.runners.tensorrt import EngineRunner
from export.runtime import load_runner
from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'protoseg[tensorrt-rtx]'",
)


def require(found: bool, missing: str) -> None:
    """Skip because of a missing piece, or fail when a GPU is promised."""
    if not found:
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail(f"REQUIRE_GPU=1, but {missing}")
        pytest.skip(missing)


def need_gpu() -> None:
    try:
        Cuda().close()
    except RunnerError as error:
        require(False, str(error))


def need_tensorrt() -> None:
    require(importlib.util.find_spec("tensorrt") is not None, "tensorrt is not installed")
    done = subprocess.run([sys.executable, "-c", "import tensorrt"], capture_output=True, check=False)
    require(done.returncode == 0, "tensorrt cannot be imported")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


INSPECT_TYPES = """
import collections, sys, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(sys.argv[1]), parser.get_error(0)
names = collections.Counter(
    str(network.get_layer(i).get_output(j).dtype).rsplit('.')[-1]
    for i in range(network.num_layers) for j in range(network.get_layer(i).num_outputs))
print(dict(names))
"""


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "present", "absent"),
    [("fp32", ["FLOAT"], ["HALF", "INT8"]), ("fp16", ["HALF"], ["INT8"]), ("int8", ["INT8", "HALF"], [])],
)
def test_rtx_builds_every_precision(
    own_bundle: Path, run_module: Run, tmp_path: Path, precision: str, present: list[str], absent: list[str]
) -> None:
    arguments = [
        "export.tensorrt", own_bundle, "--flavor", "rtx", "--precision", precision, "--cache",
        tmp_path / "cache", "--profile", "small:1x32x32:1x64x96:2x96x96", "--compute-capability", "8.6",
    ]  # fmt: skip
    done = run_module(*arguments)
    assert done.returncode == 0, done.stderr
    item = read_manifest(own_bundle).files[-1]
    assert item.kind == "tensorrt_rtx"
    assert item.precision == precision
    sidecar = read_sidecar(own_bundle / item.name)
    assert sidecar.compute_capabilities == ["8.6"]
    assert sidecar.onnx_sha256 == read_manifest(own_bundle).file(sidecar.onnx).sha256
    assert [o.dtype for o in sidecar.outputs] == ["uint8", "float32", "float32"]
    first = (own_bundle / item.name).read_bytes()
    types = subprocess.run(
        [sys.executable, "-c", INSPECT_TYPES, str(own_bundle / sidecar.onnx)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(f"'{name}'" in types for name in present), types
    assert not any(f"'{name}'" in types for name in absent), types
    audit = item.notes["audit"]
    assert not audit["wrong"], audit
    narrow = {"fp32": "float32", "fp16": "float16", "int8": "int8"}[precision]
    assert audit["found"][narrow] >= 0.6 * audit["asked"][narrow]
    assert f"{audit['found'][narrow]} {narrow}" in done.stdout
    if precision == "fp32":
        # the same engine under the name of fp16, as TensorRT 11 writes it for ``fp16=True``
        manifest, half = read_manifest(own_bundle), read_manifest(own_bundle).file("model.fp16.onnx")
        called = item.model_copy(update={"precision": "fp16", "source": half.name})
        assert "float32 instead of float16" in audit_engine(own_bundle, manifest, called).failure
        # RTX builds differ from run to run: equal bytes prove that the cache answered
        again = run_module(*arguments)
        assert "from the cache" in again.stdout
        assert (own_bundle / item.name).read_bytes() == first


def break_types(model: onnx.ModelProto) -> None:
    """float32 image times float16 weights, as broken converters write it."""
    convolution = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = next(w for w in model.graph.initializer if w.name == convolution.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))


def int32_bias(model: onnx.ModelProto) -> None:
    """A bias behind DequantizeLinear, as ONNX Runtime quantises it by default."""
    convolution = next(n for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 3)
    bias = next(w for w in model.graph.initializer if w.name == convolution.input[2])
    count = bias.dims[0]
    for name, value in (("b_q", np.zeros(count, np.int32)), ("b_s", np.ones(count, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    node = helper.make_node("DequantizeLinear", ["b_q", "b_s"], ["b_dq"], name="bias", axis=0)
    model.graph.node.insert(0, node)
    convolution.input[2] = "b_dq"


def unsupported(model: onnx.ModelProto) -> None:
    """An operator that no TensorRT has."""
    model.graph.node.append(helper.make_node("Det", ["matrix"], ["det"], name="det"))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "matrix"))
    model.graph.output.append(helper.make_tensor_value_info("det", TensorProto.FLOAT, []))


BUILD = """
import sys
from pathlib import Path
from export.engines.build import BuildSettings, build
from protoseg.errors import ExportError
from export.runners.profiles import parse_profile
settings = BuildSettings('tensorrt_rtx', (parse_profile(sys.argv[2]),))
try:
    build(Path(sys.argv[1]), settings, None, [], None)
except ExportError as error:
    print(error)
    sys.exit(1)
"""


@needs_rtx
@pytest.mark.parametrize(
    ("change", "profile", "text"),
    [
        (break_types, "a:1x64x64", "cannot be parsed"),
        (int32_bias, "a:1x64x64", "cannot be parsed"),
        (unsupported, "a:1x64x64", "Det"),
        (None, "a:2x64x64:1x64x64:1x64x64", "refused"),
    ],
)
def test_rtx_refuses_with_a_reason(
    bundle: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None] | None, profile: str, text: str
) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    if change is not None:
        change(model)
    file = tmp_path / "model.onnx"
    file.write_bytes(to_bytes(model))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(file), profile], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert text in done.stdout


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"flavor": "tensorrt_rtx", "compute_capabilities": ("9.0",)}, "TensorRT-RTX knows"),
        ({"flavor": "tensorrt_rtx", "version_compatible": True}, "are for --flavor tensorrt"),
        ({"flavor": "tensorrt", "compute_capabilities": ("8.6",)}, "is for --flavor rtx"),
        ({"flavor": "tensorrt", "optimization_level": 6}, "must be 0 to 5"),
        ({"flavor": "tensorrt", "workspace_gib": -1.0}, "must be positive"),
    ],
)
def test_settings_are_checked_before_building(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BuildError, match=text):
        BuildSettings(**{"profiles": (), **changes}).check()


def test_without_a_gpu_tensorrt_says_so(own_bundle: Path, run_module: Run) -> None:
    try:
        Cuda().close()
    except RunnerError:
        done = run_module("export.tensorrt", own_bundle)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: TensorRT builds an engine on the GPU")
        assert "--flavor rtx" in done.stderr
    else:
        pytest.skip("this machine has an NVIDIA driver")


@needs_rtx
def test_triton_repository(own_bundle: Path, run_module: Run, tmp_path: Path) -> None:
    done = run_module(
        "export.tensorrt", own_bundle, "--flavor", "rtx", "--precision", "fp16", "--no-cache",
        "--triton", tmp_path / "models", "--profile", "a:1x64x96",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "tiny_fp16_onnx"
    assert (folder / "1" / "model.onnx").read_bytes() == (own_bundle / "model.fp16.onnx").read_bytes()
    assert (folder / "config.pbtxt").is_file()


@pytest.mark.gpu
def test_cuda_gives_the_same(bundle: Path) -> None:
    need_gpu()
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    with OrtRunner(bundle / "model.onnx") as runner:
        expected = runner(image)
    with load_runner(bundle, provider="cuda") as runner:
        found = runner(image)
    assert (found["labels"] == expected["labels"]).mean() > 0.999
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=5e-3)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_engine_equals_its_onnx_file(
    own_bundle: Path, run_module: Run, tmp_path: Path, precision: str
) -> None:
    need_gpu()
    need_tensorrt()
    arguments = [
        "export.tensorrt", own_bundle, "--precision", precision, "--cache", tmp_path / "cache", "--no-tf32",
        "--profile", "default:1x32x32:1x64x96:4x192x224",
    ]  # fmt: skip
    done = run_module(*arguments)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(own_bundle)
    item = manifest.files[-1]
    assert item.parity.status == "passed"
    with load_runner(own_bundle, item.name, "tensorrt") as runner:
        assert prove_engine(own_bundle, manifest, item, runner).status in ("passed", "failed")
        with pytest.raises(RunnerError, match="fits no profile"):
            runner(np.zeros((1, 3, 640, 640), np.uint8))
    again = run_module(*arguments)
    assert "from the cache" in again.stdout
    raw = json.loads((own_bundle / (item.sidecar or "")).read_text())
    raw["gpu"] = "Another GPU"
    (own_bundle / (item.sidecar or "")).write_text(json.dumps(raw))
    with pytest.raises(RunnerError, match="built on Another GPU"):
        EngineRunner(own_bundle / item.name)


@pytest.mark.gpu
@pytest.mark.tensorrt
@needs_rtx
def test_rtx_engine_equals_its_onnx_file(own_bundle: Path, run_module: Run) -> None:
    need_gpu()
    done = run_module("export.tensorrt", own_bundle, "--flavor", "rtx", "--no-cache")
    assert done.returncode == 0, done.stderr
    assert read_manifest(own_bundle).files[-1].parity.status == "passed"
