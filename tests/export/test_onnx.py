"""The command: whole or not at all, repeatable, with one line for bad input."""

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

from export import onnx as export_onnx
from export.bundle import verify_bundle
from export.graph.trace import ExportSettings, check_settings
from export.onnx import main, parse_outputs, parse_precisions, parse_static
from export.runners.contract import RunnerError
from export.runtime import load_runner
from protoseg.checkpoint import Checkpoint
from protoseg.errors import ExportError
from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_command_says_what_it_made(exported: Any, bundle: Path) -> None:
    assert exported.code == 0, exported.err
    for word in ("fp32", "model.fp16.onnx", "passed", "PROTOSEG_MODEL="):
        assert word in exported.out
    assert not list(bundle.parent.glob("bundle.*"))


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
    with pytest.raises(ExportError, match="--head fused needs prototypes"):
        check_settings(without, ExportSettings(head="fused"))


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
