"""Sidecars, profiles, caches, Triton files, and the engine runner on fakes (no GPU is involved)."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.engines.build import BuildError, BuildSettings
from export.engines.cache import Cache, default_cache, locked
from export.engines.triton import model_config
from export.runners.cuda import Cuda, GpuInfo
from export.runners.ort import RunnerError
from export.runners.profiles import Profile, check_profiles, default_profile, parse_profile
from export.runners.sidecar import Sidecar, differences, sidecar_path
from export.runners.tensorrt import EngineRunner
from protoseg.errors import ExportError
from protoseg.files import sha256_file
from protoseg.manifest import Manifest, TensorInfo, read_manifest

_SPEC = importlib.util.spec_from_file_location(
    "fake_tensorrt", Path(__file__).parents[1] / "fake_tensorrt.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
fake = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake)

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
    cuda = fake.FakeCuda()
    return EngineRunner(plan, module=fake.FakeModule(cuda, loads=loads), cuda=cuda), cuda


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
        ({}, "11.4.0", fake.GPU, ""),
        ({}, "11.5.0", fake.GPU, "TensorRT: built with 11.4.0, here 11.5.0"),
        ({"version_compatible": True}, "11.5.0", fake.GPU, ""),
        ({"version_compatible": True}, "11.3.9", fake.GPU, "TensorRT"),
        ({"version_compatible": True}, "12.0.0", fake.GPU, "TensorRT"),
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


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("export.runners.cuda.ctypes.CDLL", missing)
    with pytest.raises(RunnerError, match="no NVIDIA driver"):
        Cuda()


# --- profiles -----------------------------------------------------------------------------------------


def static(manifest: Manifest, shape: tuple[int, int, int]) -> Manifest:
    graph = manifest.graph.model_copy(update={"static_shape": shape})
    return manifest.model_copy(update={"graph": graph})


def test_profiles_are_parsed() -> None:
    profile = parse_profile("wide:1x32x64:2x48x96:4x64x128")
    assert (profile.min, profile.opt, profile.max) == ((1, 32, 64), (2, 48, 96), (4, 64, 128))
    assert str(profile) == "wide:1x32x64:2x48x96:4x64x128"
    assert parse_profile("one:1x32x64").fixed
    for text in ("default", "a:1x2", "a:1x2x3:4x5x6", ":1x2x3", "a:1x2x3:1x2x3:1x2x3:1x2x3", "a:1xHx3"):
        with pytest.raises(ExportError, match="expected NAME:MIN:OPT:MAX"):
            parse_profile(text)


def test_profiles_are_checked_before_building(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    default = check_profiles([], manifest)
    assert default == [default_profile(manifest)]
    assert default[0].contains((1, 64, 96))
    for text in ("a:2x64x64:1x64x64:4x64x64", "a:1x64x64:1x128x64:1x96x64", "a:0x64x64:1x64x64:1x64x64"):
        with pytest.raises(ExportError, match="1 <= min <= opt <= max"):
            check_profiles([parse_profile(text)], manifest)
    with pytest.raises(ExportError, match="names must differ"):
        check_profiles([parse_profile("a:1x64x64"), parse_profile("a:1x32x32")], manifest)
    fixed = static(manifest, (1, 64, 96))
    assert check_profiles([], fixed) == []
    assert check_profiles([parse_profile("a:1x64x96")], fixed) == []
    with pytest.raises(ExportError, match="fixed shape 1x64x96"):
        check_profiles([parse_profile("a:1x64x64")], fixed)


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


# --- caches -------------------------------------------------------------------------------------------


def test_cache_keeps_whole_files_by_all_facts(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "engines", ".plan")
    facts = {"onnx": "a", "version": "1", "gpu": None}
    assert cache.read(facts) is None
    cache.write(facts, b"plan")
    assert cache.read(facts) == b"plan"
    for change in ({"onnx": "b"}, {"version": "2"}, {"gpu": {"name": "x"}}):
        assert cache.read({**facts, **change}) is None
    cache.path(facts).write_bytes(b"plam")
    assert cache.read(facts) is None
    cache.write(facts, b"plan")
    cache.path(facts).with_name(cache.path(facts).name + ".json").write_text("{")
    assert cache.read(facts) is None


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("PROTOSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "protoseg"


def _hold(path: str, ready: Any, release: Any) -> None:
    with locked(Path(path)):
        ready.set()
        release.wait(30)


def test_builds_exclude_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "build"), ready, release))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(ExportError, match="another build"), locked(tmp_path / "build", timeout=0.1):
            pass
    finally:
        release.set()
        process.join(30)
    with locked(tmp_path / "build", timeout=0.1):
        pass


# --- Triton -------------------------------------------------------------------------------------------


def test_triton_config_of_a_dynamic_graph(bundle: Path) -> None:
    item = read_manifest(bundle).file("model.onnx")
    text = model_config("tiny", item, [SMALL])
    assert 'platform: "onnxruntime_onnx"' in text
    assert "max_batch_size: 2" in text
    assert "dims: [ 3, -1, -1 ]" in text
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")


def test_triton_config_of_a_fixed_graph_has_no_batching(bundle: Path) -> None:
    item = read_manifest(bundle).file("model.onnx")
    shape: list[int | str] = [1, 3, 64, 96]
    fixed = item.model_copy(update={"inputs": [item.inputs[0].model_copy(update={"shape": shape})]})
    text = model_config("tiny", fixed, [])
    assert "max_batch_size: 0" in text
    assert "dims: [ 1, 3, 64, 96 ]" in text
    assert "dynamic_batching" not in text


def test_sidecar_is_plain_json(tmp_path: Path) -> None:
    raw = json.loads(sidecar_path(write_plan(tmp_path)).read_text())
    assert raw["profiles"][0]["max"] == [2, 64, 96]
