import os

import pytest
import torch
from tiny import tiny_info, tiny_segmenter

from protoseg.checkpoint import read_info, save_checkpoint
from protoseg.config.method import PrototypeConfig
from protoseg.errors import CheckpointError
from protoseg.models.segmenter import build_segmenter
from protoseg.start_from import start_from_checkpoint


@pytest.fixture
def saved(tmp_path):
    segmenter = tiny_segmenter()
    save_checkpoint(tmp_path / "run" / "checkpoint", segmenter, tiny_info(), segmenter.network)
    return tmp_path / "run", segmenter


def names_of(info):
    return info.classes, info.input.mean, info.input.std


def test_a_start_takes_all_but_projection_and_prototypes(saved):
    run, source = saved
    info = read_info(run / "checkpoint")
    network = build_segmenter(
        info.model.model_copy(update={"aux_weight": 0.4}),
        PrototypeConfig(projection="mlp", projection_dim=8),
        num_classes=3,
    ).network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert start_from_checkpoint(run, network, *names_of(info)).step == info.step
    theirs, new = source.network.state_dict(), 0
    for key, value in network.state_dict().items():
        if key.startswith(("projection.", "aux_head.")):
            assert torch.equal(value, before[key])
            new += 1
        else:
            assert torch.equal(value, theirs[key]), key
    assert new > 4
    assert len(network.state_dict()) - new == sum(not key.startswith("projection.") for key in theirs)


def test_a_start_from_something_else_says_what_differs(saved):
    run, source = saved
    classes, mean, std = names_of(read_info(run / "checkpoint"))
    before = {k: v.clone() for k, v in source.network.state_dict().items()}
    with pytest.raises(CheckpointError, match="has the classes class0, class1, class2; this run has class0"):
        start_from_checkpoint(run, source.network, classes[:2], mean, std)
    with pytest.raises(CheckpointError, match=r"trained with mean \[0.5, 0.5, 0.5\]"):
        start_from_checkpoint(run, source.network, classes, [0.1] * 3, std)
    wider = tiny_segmenter(decoder_channels=48).network
    with pytest.raises(CheckpointError, match=r"another network .* tensors differ, the first is backbone"):
        start_from_checkpoint(run, wider, classes, mean, std)
    with (run / "checkpoint" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match="was changed or cut short"):
        start_from_checkpoint(run, source.network, classes, mean, std)
    assert all(torch.equal(v, before[k]) for k, v in source.network.state_dict().items())


def test_a_start_from_another_range_of_values_is_refused(tmp_path):
    source, info = tiny_segmenter(), tiny_info()
    rule = info.input.model_copy(update={"value_range": (0.0, 4095.0)})
    save_checkpoint(tmp_path / "checkpoint", source, info.model_copy(update={"input": rule}))
    network = tiny_segmenter(seed=1).network
    mean, std = info.input.mean, info.input.std
    for same in (None, (0.0, 4095.0)):
        start_from_checkpoint(tmp_path, network, info.classes, mean, std, same)
    with pytest.raises(
        CheckpointError, match=r"values of 0 to 4095, this run has 0 to 65535; set data\.value_range="
    ):
        start_from_checkpoint(tmp_path, network, info.classes, mean, std, (0.0, 65535.0))
