"""Where a training step on CUDA would make the host wait for the device, found without one.

Tensors without values stand on a CUDA device that need not be there: whatever asks for a value fails, and a
transfer that waits is noted. The backward pass, which torch does not run so, has no code of ours.
"""

import os
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_step import batches, run_step, step_of
from tiny import PROJECT_ROOT, tiny_config
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from protoseg.config.data import DataConfig, SyntheticConfig, ViewConfig
from protoseg.data import device_stream
from protoseg.data.device_stream import make_device_stream
from protoseg.data.sources import CachedSource, open_source
from protoseg.data.stream import StreamSampler
from protoseg.data.synthetic import synthetic_classes
from protoseg.method.calibration import Calibration
from protoseg.method.prototype_branch import move_prototypes
from protoseg.method.teacher import follow
from protoseg.processes import sent
from protoseg.train.monitor import FaultWatch
from protoseg.train.optim import make_optimizer

CUDA = torch.device("cuda", 0)


class Waits(TorchDispatchMode):
    """Notes transfers from the host that wait, with the lines of this project that ask for them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.name()
        if name in ("aten::_to_copy", "aten::copy_"):
            source, target = (args[0], result) if name == "aten::_to_copy" else (args[1], args[0])
            quick = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if source.device.type != target.device.type and not (quick and source.is_pinned()):
                self.found.append(asked_for())
        return result


def asked_for():
    """The last two of our lines that lead to a transfer."""
    # a virtual environment may lie in the project, too
    places = tuple(f"{PROJECT_ROOT / name}{os.sep}" for name in ("protoseg", "tests"))
    ours = [item for item in traceback.extract_stack()[:-2] if item.filename.startswith(places)]
    return [f"{Path(item.filename).name}:{item.lineno}" for item in ours[-2:]]


@pytest.fixture
def on_cuda(monkeypatch):
    """Within the context that this gives tensors have no values, and may be on a device that is not there."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: any(tensor is item for item in pinned))
    monkeypatch.setattr(device_stream, "free_memory", lambda device: None)
    # a parameter with values cannot become one without
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def waits_of_a_step(networks, method, views=1):
    """A step as ``take_step`` goes, without the backward pass."""
    for part in (networks.network, networks.teacher, networks.bank, networks.thresholds):
        part.to(CUDA)
    if networks.calibration is not None:
        networks.calibration.to(CUDA)
    weights = None if method.class_weights is None else method.class_weights.to(CUDA)
    method = replace(method, fill=method.fill.to(CUDA), class_weights=weights)
    labeled, unlabeled = ({k: v.to(CUDA) for k, v in part.items()} for part in batches(views))
    optimizer = make_optimizer(networks.network, tiny_config().optim)
    faults = FaultWatch(CUDA, None)
    with Waits() as waits:
        result = run_step(networks, method, labeled, unlabeled)
        for parameter in networks.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(networks.network.parameters(), 1.0)
        faults.note(1, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # the tenth step looks after idle prototypes
        move_prototypes(networks.bank, [result.points], method.prototypes, 9, lambda value: value)
        follow(networks.teacher, networks.network, 3, 0.99)
    return waits.found


def test_a_step(on_cuda):
    networks, method = step_of(method={"preset": "protoseg"})
    with on_cuda:
        assert waits_of_a_step(networks, method) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"ohem": True}, "pseudo_labels": {"per_class": True, "agreement": "heads"}},
        {"pseudo_labels": {"source": "fused"}, "views": {"mixing": "classmix", "mixing_per_image": True}},
        {"pseudo_labels": {"source": "reweighted"}, "views": {"mixing": "cutout"}},
        {"prototypes": {"update_from": "clean"}, "loss": {"class_weights": "inverse_sqrt"}},
        {"prototypes": {"consistency": 1.0, "update_features": "teacher"}},
        {"method": {"preset": "unimatch_v2"}},
    ],
    ids=["ohem", "fused", "reweighted", "clean", "consistency", "unimatch_v2"],
)
def test_a_step_of_other_settings(on_cuda, sections):
    weighted = "class_weights" in sections.get("loss", {})
    networks, method = step_of(class_weights=torch.ones(5) if weighted else None, **sections)
    calibrated = replace(networks, calibration=Calibration(5, 0.5, "")) if weighted else networks
    with on_cuda:
        assert waits_of_a_step(calibrated, method, method.views.strong_views) == []


@pytest.mark.parametrize("stream", [pytest.param("labeled", marks=pytest.mark.slow), "unlabeled"])
def test_a_batch_of_images_that_lie_there(on_cuda, stream):
    data = DataConfig(synthetic=SyntheticConfig(num_labeled=4, num_unlabeled=4), cache="device")
    source = CachedSource(open_source(data, stream, synthetic_classes(data.synthetic)), data)
    draws = StreamSampler(len(source), 4, seed=0, stream=stream, start=0, stop=2)
    with on_cuda:
        made = make_device_stream(
            source, draws, data=data, views=ViewConfig(strong_views=2, labeled_jitter=True), mean=[0.5] * 3,
            device=CUDA,
        )  # fmt: skip
        with Waits() as waits:
            found = list(made)
    assert waits.found == []
    assert {str(value.device) for value in found[0].values()} == {"cpu", "cuda:0"}
    assert found[0]["replaced"].device.type == "cpu"


def test_what_waits_is_found(on_cuda):
    with on_cuda, Waits() as waits:
        there = sent(torch.ones(3), CUDA)
        assert waits.found == []
        torch.ones(3).to(CUDA, non_blocking=True)  # not pinned
        torch.ones(3).to(CUDA)
        there.copy_(torch.ones(3))
        assert len(waits.found) == 3
        assert "test_host_waits.py" in waits.found[0][-1]
        there.cpu()
        assert len(waits.found) == 4
        for ask in (bool, float, torch.nonzero, lambda value: value[value > 0]):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                ask(there.sum() if ask in (bool, float) else there)
