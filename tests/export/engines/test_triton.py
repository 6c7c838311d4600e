"""Triton model repositories."""

from __future__ import annotations

from pathlib import Path

from export.engines.triton import model_config
from export.runners.profiles import Profile
from protoseg.manifest import read_manifest

SMALL = Profile(name="small", min=(1, 32, 32), opt=(1, 64, 64), max=(2, 64, 96))


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
