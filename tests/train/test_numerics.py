"""Precision and memory layout where the settings leave them open."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_config

from protoseg.train import numerics, setup
from protoseg.train.numerics import channels_last, cpu_hint, precision
from protoseg.train.setup import make_accelerator

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def bf16_cuda(monkeypatch):
    """A CUDA device with, or without, bfloat16 in its tensor cores."""

    def make(able):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)

    return make


@pytest.mark.parametrize(
    ("wanted", "launched", "device", "able", "expected"),
    [
        (None, {}, CUDA, True, "bf16"),
        (None, {}, CUDA, False, None),
        (None, {}, CPU, True, None),
        (None, {"ACCELERATE_MIXED_PRECISION": "no"}, CUDA, True, "bf16"),  # the launcher's default
        (None, {"ACCELERATE_MIXED_PRECISION": "fp16"}, CUDA, True, None),  # accelerate reads it
        ("no", {}, CUDA, True, "no"),
        ("no", {"ACCELERATE_MIXED_PRECISION": "bf16"}, CUDA, True, "no"),
        ("fp16", {}, CUDA, True, "fp16"),
        ("bf16", {}, CPU, False, "bf16"),
    ],
)
def test_precision(bf16_cuda, wanted, launched, device, able, expected):
    bf16_cuda(able)
    assert precision(wanted, device, launched) == expected


@pytest.mark.parametrize(
    ("wanted", "device", "able", "expected"),
    [
        (None, CUDA, True, True),
        (None, CUDA, False, False),
        (None, CPU, True, False),
        (False, CUDA, True, False),
        (True, CPU, False, True),
    ],
)
def test_layout(bf16_cuda, wanted, device, able, expected):
    bf16_cuda(able)
    assert channels_last(wanted, device) is expected


@pytest.mark.parametrize("given", [None, True, False])
def test_settings_of_older_files_load(given):
    assert tiny_config(train={"channels_last": given}).train.channels_last is given


def cpuinfo(path, flags):
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t\t:\nprocessor\t: 1\n")
    return path


def test_a_hint_where_the_processor_computes_bfloat16(tmp_path, monkeypatch):
    monkeypatch.delenv(numerics.LAUNCHER, raising=False)
    able = cpuinfo(tmp_path / "able", "avx512f avx512_bf16")
    assert "train.mixed_precision=bf16" in cpu_hint(None, CPU, able)
    assert "train.mixed_precision=bf16" in cpu_hint(None, CPU, cpuinfo(tmp_path / "amx", "amx_bf16"))
    assert cpu_hint(None, CPU, cpuinfo(tmp_path / "plain", "avx512f")) == ""
    assert cpu_hint(None, CPU, tmp_path / "absent") == ""
    for decided in ("no", "bf16"):
        assert cpu_hint(decided, CPU, able) == ""
    assert cpu_hint(None, CUDA, able) == ""
    monkeypatch.setenv(numerics.LAUNCHER, "bf16")
    assert cpu_hint(None, CPU, able) == ""


@pytest.mark.parametrize(("flag", "expected"), [("true", "cpu"), ("", "cuda")])
def test_a_run_that_is_kept_from_the_gpu_is_not_told_of_it(monkeypatch, tmp_path, flag, expected):
    """Its device is not asked of accelerate: that would settle how processes find each other."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(setup, "precision", lambda wanted, device: asked.append(device.type))
    monkeypatch.setattr(setup, "Accelerator", lambda **settings: SimpleNamespace(
        device=CUDA, num_processes=1, **settings))  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag or "false")
    make_accelerator(tiny_config().train, tmp_path)
    assert asked == [expected]


def test_on_a_cpu_nothing_is_chosen(tmp_path):
    assert make_accelerator(tiny_config().train, tmp_path).mixed_precision == "no"
