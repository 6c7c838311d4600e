"""Bundles on disk: whole or not at all, checked, repeatable, and proven again without the checkpoint."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export import onnx as export_onnx
from export.bundle import sample_batches, staged, upsample, verify_bundle, write_bytes
from export.calibration import checkpoint_images, folder_images, images_hash
from export.graph.module import TorchRunner
from export.graph.trace import ExportSettings, check_settings
from export.onnx import main, parse_outputs, parse_precisions, parse_static
from export.proof.cases import NamedImage, dynamic_cases, static_cases
from export.runners.ort import RunnerError, load_runner
from protoseg.checkpoint import Checkpoint
from protoseg.errors import ExportError
from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("size", [(64, 96), (33, 41), (3, 5)])
def test_upsampling_equals_torch(stride: int, size: tuple[int, int]) -> None:
    padded = [-(-s // 32) * 32 for s in size]
    low = torch.randn(2, 3, padded[0] // stride, padded[1] // stride)
    full = F.interpolate(low, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    np.testing.assert_allclose(upsample(low.numpy(), *size, 32), full.numpy(), atol=1e-5)


def test_samples_rebuild_what_torch_gave(checkpoint: Checkpoint, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert len(manifest.samples) == 3
    for _, batch, outputs in sample_batches(bundle, manifest):
        expected = TorchRunner(checkpoint.segmenter, "linear")(batch)
        assert set(outputs) == set(expected)
        np.testing.assert_array_equal(outputs["labels"], expected["labels"])
        for name in ("confidence", "agreement", "linear_logits", "prototype_logits"):
            np.testing.assert_allclose(outputs[name], expected[name], atol=2e-5, err_msg=name)


def test_manifest_is_complete(checkpoint: Checkpoint, bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    info = checkpoint.info
    assert manifest.checkpoint_sha256 == info.weights_sha256
    assert [f.precision for f in manifest.files] == ["fp32", "fp16", "int8", "int8-cpu"]
    assert manifest.files[0].parity.status == manifest.files[1].parity.status == "passed"
    half = manifest.files[1].parity.cases
    assert [c.reference for c in half] == ["torch", "model.onnx", "torch"]
    assert "half precision" in half[2].runtime
    case = manifest.files[0].parity.cases[0]
    assert case.inputs > 20
    assert case.metrics["val/miou"] is not None
    assert manifest.baseline is not None
    assert sum(manifest.baseline.class_fractions) == pytest.approx(1)
    assert sum(manifest.baseline.confidence_histogram) == pytest.approx(1)
    assert manifest.baseline.images == 12
    assert manifest.graph.prototypes == 2
    assert manifest.graph.decoder_stride == 4
    for item in manifest.files[1:]:
        assert item.notes["calibration"]["images"] == 12
        assert len(item.notes["calibration"]["sha256"]) == 64


def test_the_command_says_what_it_made(exported: Any, bundle: Path) -> None:
    assert exported.code == 0, exported.err
    for word in ("fp32", "model.fp16.onnx", "passed", "PROTOSEG_MODEL="):
        assert word in exported.out
    assert not list(bundle.parent.glob("bundle.*"))


# --- repeated parity ----------------------------------------------------------------------------------


def test_parity_repeats_without_the_checkpoint(bundle: Path, tmp_path: Path, run_module: Run) -> None:
    copy = shutil.copytree(bundle, tmp_path / "moved")
    done = run_module("export.parity", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"):
        assert f"{name}: passed" in done.stdout
    assert read_manifest(copy) == read_manifest(bundle)


def test_parity_takes_a_pass_away(bundle: Path, tmp_path: Path) -> None:
    """A file that was replaced together with its hash, so that only the numbers can tell."""
    from export.parity import main as parity_main
    from protoseg.files import sha256_file

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "samples" / "0_logits.npz").read_bytes())
    stored = dict(np.load(copy / "samples" / "0_logits.npz"))
    stored["linear_logits_stride"] = stored["linear_logits_stride"] + 0.01
    np.savez(copy / "samples" / "0_logits.npz", **stored)
    assert bytes(data) != (copy / "samples" / "0_logits.npz").read_bytes()
    raw = json.loads((copy / "manifest.json").read_text())
    raw["samples"][0]["sha256"]["samples/0_logits.npz"] = sha256_file(copy / "samples" / "0_logits.npz")
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert parity_main([str(copy)]) == 1
    assert read_manifest(copy).files[0].parity.status == "failed"
    with pytest.raises(RunnerError, match="whose parity passed"):
        load_runner(copy)


def test_parity_refuses_a_changed_byte(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.parity import main as parity_main

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(bytes(data))
    before = (copy / "manifest.json").read_bytes()
    assert parity_main([str(copy)]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "model.onnx was changed after it was exported" in error[0]
    assert (copy / "manifest.json").read_bytes() == before


# --- bad input ----------------------------------------------------------------------------------------


def test_staging_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")

    def fail() -> None:
        with staged(target) as partial:
            (partial / "manifest.json").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "manifest.json").read_text() == "old"
    with staged(target) as partial:
        (partial / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.tex").write_text("text")
    with pytest.raises(ExportError, match="is not a bundle"), staged(target):
        pass
    assert (target / "chapter.tex").read_text() == "text"


def test_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_full_disk_is_one_line(
    run_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "manifest.json").read_bytes()

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")

    monkeypatch.setattr(export_onnx.BundleWriter, "write", full)
    assert main([str(run_folder)]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["error: the disk is full (model.onnx); what was there before is unchanged"]
    assert (bundle / "manifest.json").read_bytes() == before
    assert not list(run_folder.glob("bundle.partial"))


def test_ctrl_c_is_one_line_and_leaves_no_trace(
    run_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "manifest.json").read_bytes()

    def stopped(self: Any, folder: Path) -> Any:
        (folder / "model.onnx").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(export_onnx.BundleWriter, "write", stopped)
    assert main([str(run_folder)]) == 130
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["interrupted; what was there before is unchanged"]
    assert (bundle / "manifest.json").read_bytes() == before
    assert not list(run_folder.glob("bundle.*"))


def copy_checkpoint(run_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_folder / "checkpoint", tmp_path / "run" / "checkpoint")


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def other_schema(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["schema_version"] = 99
    (folder / "config.json").write_text(json.dumps(raw))


def missing_keys(folder: Path) -> None:
    import safetensors.torch

    from protoseg.files import sha256_file

    state = safetensors.torch.load_file(folder / "model.safetensors")
    state.pop(next(k for k in state if k.endswith("weight")))
    safetensors.torch.save_file(state, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    raw["weights_sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["SegformerForSemanticSegmentation"]}')


def foreign_file(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder.parent / "weights.pth").write_bytes(b"PK\x03\x04 a pickle of another project")


@pytest.mark.parametrize(
    ("damage", "text"),
    [(truncate, "changed or cut short"), (other_schema, "schema version 99"),
     (missing_keys, "does not fit the network"), (remove, "no checkpoint at"),
     (foreign, "schema version None"), (foreign_file, "no checkpoint at")],
)  # fmt: skip
def test_damaged_checkpoints_are_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None], text: str,
) -> None:  # fmt: skip
    damage(copy_checkpoint(run_folder, tmp_path))
    assert main([str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert text in error[0]
    assert not list((tmp_path / "run").glob("bundle*"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--calibrate", "EMPTY"], "no image"),
        (["--calibrate", "ABSENT"], "no such folder"),
        (["--opset", "17"], "use 18 to 23"),
        (["-o", "FULL"], "is not a bundle"),
    ],
)
def test_bad_options_are_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    for name in ("EMPTY", "FULL"):
        (tmp_path / name).mkdir()
    (tmp_path / "FULL" / "notes.txt").write_text("mine")
    given = [str(tmp_path / o) if o.isupper() else o for o in options]
    target = [] if "-o" in options else ["-o", str(tmp_path / "bundle")]
    assert main([str(run_folder), *target, *given]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert text in error[0]
    assert not (tmp_path / "bundle").exists()


def test_options_are_parsed() -> None:
    import argparse

    assert parse_static("1x360x480") == (1, 360, 480)
    assert parse_precisions("int8,fp32") == ("fp32", "int8")
    assert parse_outputs("none") == ("labels", "confidence")
    assert parse_outputs("logits,agreement") == ("labels", "confidence", "agreement", "logits")
    for parse, text in ((parse_static, "360x480"), (parse_static, "0x1x1"), (parse_precisions, "fp8"),
                        (parse_outputs, "depth")):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


def test_heads_need_prototypes(checkpoint: Checkpoint) -> None:
    from copy import deepcopy
    from dataclasses import replace

    segmenter = deepcopy(checkpoint.segmenter)
    segmenter.bank.start({})
    without = replace(checkpoint, segmenter=segmenter)
    assert check_settings(without, ExportSettings()).outputs == ("labels", "confidence")
    with pytest.raises(ExportError, match="--head mean needs prototypes"):
        check_settings(without, ExportSettings(head="mean"))


def test_an_untrained_network_is_inconclusive_and_not_servable(
    run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One class everywhere: equal labels prove nothing. The graph is reused, only its bias changes."""
    import onnx
    from onnx import numpy_helper

    import export.writer
    from protoseg.checkpoint import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(run_folder)
    head = [m for m in loaded.segmenter.network.linear_head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert head.bias is not None
    with torch.no_grad():
        head.bias[0] += 1000
    save_checkpoint(tmp_path / "run" / "checkpoint", loaded.segmenter, loaded.info)
    model = onnx.load(str(bundle / "model.onnx"))
    node = next(n for n in model.graph.node if "linear_logits_stride" in n.output)
    bias = next(w for w in model.graph.initializer if w.name == node.input[2])
    bias.CopyFrom(numpy_helper.from_array(head.bias.detach().numpy(), bias.name))
    monkeypatch.setattr(export.writer, "build_graph", lambda *_: model)
    assert main([str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "inconclusive" in error
    assert "not servable" in error
    assert not (tmp_path / "run" / "bundle").exists()
    rejected = tmp_path / "run" / "bundle.rejected"
    assert read_manifest(rejected).servable() == []
    with pytest.raises(RunnerError):
        load_runner(rejected)


# --- images -------------------------------------------------------------------------------------------


def test_calibration_images_are_spread_and_hashed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    info = checkpoint.info
    images = checkpoint_images(info, "unlabeled", 4)
    assert [i.name for i in images] == [f"unlabeled-{n}.png" for n in (0, 3, 6, 9)]
    assert all(i.mask is None for i in images)
    assert images_hash(images) == images_hash(checkpoint_images(info, "unlabeled", 4))
    assert images_hash(images) != images_hash(images[:3])
    from PIL import Image

    for image in images:
        Image.fromarray(image.pixels).save(tmp_path / image.name)
    found = folder_images(tmp_path, info, 10)
    assert images_hash(found) == images_hash(images)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"broken\.png"):
        folder_images(tmp_path, info, 10)


def test_files_that_have_gone_are_named_with_the_cure(checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = checkpoint.info.data.model_copy(
        update={"kind": "files", "root": str(tmp_path), "val": "val.txt", "labeled": "labeled.txt"}
    )
    info = checkpoint.info.model_copy(update={"data": data})
    with pytest.raises(ExportError, match=r"not where they were.*--calibrate FOLDER"):
        checkpoint_images(info, "val", 2)
    moved = data.model_copy(update={"root": str(tmp_path / "gone")})
    info = checkpoint.info.model_copy(update={"data": moved})
    # not the trainer's cure, which the exporter does not take
    with pytest.raises(ExportError, match=r"gone is not a folder \([^;]*\); name a folder"):
        checkpoint_images(info, "val", 2)


def test_cases_cover_sizes_batches_and_extremes() -> None:
    image = NamedImage("a.png", images_like(64, 96), np.zeros((64, 96), np.uint8))
    cases = {c.name: c for c in dynamic_cases([image], (64, 96), 32)}
    assert cases["size-tile"].batch.shape == (1, 3, 32, 32)
    assert cases["size-odd"].batch.shape[2] % 2 == 1
    assert cases["size-tall"].batch.shape[2] > 3 * cases["size-tall"].batch.shape[3]
    assert cases["size-wide"].batch.shape[3] > 3 * cases["size-wide"].batch.shape[2]
    assert [len(cases[f"batch-{n}"].batch) for n in (2, 4)] == [2, 4]
    assert {"noise", "black", "white", "grey", "checkerboard", "ramp"} <= set(cases)
    assert cases["a.png"].mask is not None
    assert cases["size-multiple"].on_multiple(32)
    assert not cases["size-odd"].on_multiple(32)
    with pytest.raises(ExportError, match="at least one real image"):
        dynamic_cases([], (64, 96), 32)
    fixed = static_cases([image], (2, 32, 48))
    assert {c.batch.shape for c in fixed} == {(2, 3, 32, 48)}


def images_like(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- inspect ------------------------------------------------------------------------------------------


def test_inspect_runs_what_it_lists(bundle: Path, tmp_path: Path, run_module: Run) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    done = run_module("export.inspect", copy)
    assert done.returncode == 0, done.stderr
    assert "model.onnx on cpu: onnxruntime" in done.stdout
    assert "100.0000% of labels as torch" in done.stdout
    if "no NVIDIA driver" in done.stdout:
        assert "model.onnx on cuda: NO: CUDAExecutionProvider was asked for" in done.stdout
    (copy / "model.fp16.onnx").write_bytes(b"changed")
    done = run_module("export.inspect", copy)
    assert done.returncode == 1
    assert "DAMAGED" in done.stdout


def test_int8_for_cpus_says_on_which_it_is_exact(bundle: Path, tmp_path: Path) -> None:
    from export import inspect as export_inspect

    manifest = read_manifest(bundle)
    assert "  7-bit weights: exact on x86 CPUs with and without VNNI" in export_inspect.describe(manifest)
    item = manifest.file("model.int8-cpu.onnx")
    old = item.model_copy(update={"notes": {k: v for k, v in item.notes.items() if k != "weight_bits"}})
    lines = export_inspect.describe(manifest.model_copy(update={"files": [old]}))
    assert any("sums overflow on x86 CPUs without VNNI" in line for line in lines)


def test_inspect_needs_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from export.inspect import main as inspect_main

    assert inspect_main([str(tmp_path)]) == 1
    assert "python -m export.onnx CKPT" in capsys.readouterr().err


def test_two_onnx_runtimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from export import inspect as export_inspect

    both = ["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1"]
    monkeypatch.setattr(export_inspect, "onnxruntime_distributions", lambda: both)
    assert any("PROBLEM: two ONNX Runtime" in line for line in export_inspect.environment())


# --- slow: whole exports ------------------------------------------------------------------------------


@pytest.mark.slow
def test_repetition_is_byte_identical(
    run_folder: Path, bundle: Path, tmp_path: Path, run_module: Run
) -> None:
    done = run_module(
        "export.onnx", run_folder, "-o", tmp_path / "b", "--precision", "fp32,fp16,int8,int8-cpu"
    )
    assert done.returncode == 0, done.stderr
    for file in sorted(bundle.iterdir()):
        if file.suffix == ".onnx":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    for file in sorted((bundle / "samples").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / "samples" / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [["--head", "prototype", "--input", "nhwc", "--outputs", "logits,logits_stride,prototype,embedding"],
     ["--head", "mean", "--input", "float32", "--outputs", "none", "--opset", "18"],
     ["--static", "2x64x96", "--outputs", "agreement,logits", "--precision", "fp32,fp16", "--opset", "23"]],
    ids=["prototype-nhwc", "mean-float32", "static"],
)  # fmt: skip
def test_other_graphs_pass_too(
    checkpoint: Checkpoint, tmp_path: Path, run_module: Run, options: list[str]
) -> None:
    done = run_module("export.onnx", checkpoint.path, "-o", tmp_path / "bundle", *options)
    assert done.returncode == 0, done.stderr
    manifest = verify_bundle(tmp_path / "bundle")
    assert all(f.parity.status == "passed" for f in manifest.files)
    if "--opset" in options:
        assert manifest.files[0].opset == int(options[-1])
    with load_runner(tmp_path / "bundle", provider="cpu") as runner:
        shape = runner.inputs[0].shape
        size = [d if isinstance(d, int) else {"batch": 1, "height": 64, "width": 96}[d] for d in shape]
        outputs = runner(np.zeros(size, runner.inputs[0].dtype))
    if "logits_stride" in options[-1]:
        assert outputs["logits_stride"].shape == (1, 4, 16, 24)
        assert outputs["embedding"].shape == (1, 16, 16, 24)
        np.testing.assert_allclose((outputs["embedding"] ** 2).sum(1), 1, atol=1e-4)
        assert outputs["prototype"].max() < 8
    done = run_module("export.parity", tmp_path / "bundle")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [["model.architecture=unet", "model.encoder=test_resnet"],
     ["model.architecture=segformer", "model.encoder=test_efficientnet", "model.decoder_channels=32"],
     ["model.architecture=dpt", "model.encoder=test_vit", "model.decoder_channels=16"]],
    ids=["unet", "segformer", "dpt"],
)  # fmt: skip
def test_other_networks_export(
    checkpoint: Checkpoint, tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    conftest = sys.modules[next(n for n in sys.modules if n.endswith("export.conftest"))]
    config = conftest.load_config(None, [*conftest.TINY[2:], *network])
    run = conftest.save_tiny(tmp_path / "run", config, conftest.train_tiny(config, 40))
    assert main([str(run), "--precision", "fp32,fp16"]) == 0
    assert (run / "bundle" / "model.fp16.onnx").is_file()
