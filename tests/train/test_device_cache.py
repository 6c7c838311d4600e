"""Trainings whose images lie on the device, here the CPU."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from tiny import tiny_config

from protoseg.config.ignored import ignored_settings
from protoseg.config.plan import make_schedule
from protoseg.errors import ConfigError
from protoseg.processes import ALONE
from protoseg.train.data import open_batches, open_run_data
from protoseg.train.log import read_metrics
from protoseg.train.loop import train


def config(folder, cache="device", **sections):
    steps = {"max_steps": 4, "warmup_steps": 1, "eval_every": 4, "save_every": 2, "keep_states": 2}
    return tiny_config(
        run={"name": "tiny", "dir": str(folder)},
        data={"synthetic": {"num_labeled": 4, "num_unlabeled": 6, "num_val": 1, "height": 40, "width": 48},
              "cache": cache, **sections.pop("data", {})},
        train=steps | sections.pop("train", {}), **sections,
    )  # fmt: skip


def losses(folder):
    return [r["loss/total"] for r in read_metrics(folder / "metrics.jsonl") if "loss/total" in r]


@pytest.mark.slow
def test_a_training_is_that_of_images_in_files_and_resumes_to_the_bit(tmp_path):
    for cache in (False, "device"):
        assert train(config(tmp_path / str(cache), cache)) == 0
    there, here = (losses(tmp_path / name / "tiny") for name in ("False", "device"))
    assert here == pytest.approx(there, rel=1e-3)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "device", again)
    shutil.rmtree(again / "tiny" / "state" / "step_00000004")
    (again / "tiny" / "finished.json").unlink()
    assert train(config(again), resume=True) == 0
    assert losses(again / "tiny") == here
    one, two = (safetensors.torch.load_file(folder / "tiny" / "checkpoint" / "student.safetensors")
                for folder in (tmp_path / "device", again))  # fmt: skip
    assert all(torch.equal(one[name], value) for name, value in two.items())


def test_nothing_is_moved_when_the_images_do_not_fit(tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text("an earlier run")
    monkeypatch.setattr("protoseg.data.device_stream.free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"data.cache=device: 6 unlabelled images need about 0 MiB"):
        train(config(tmp_path))
    assert (folder / "config.yaml").read_text() == "an earlier run"


def test_rare_classes_and_processes(tmp_path):
    """What a process is dealt: its part of one global order, images of rare classes more often."""
    settings = config(tmp_path, train={"rare_class_temperature": 0.05, "batch_size": 2})
    plain = config(tmp_path, False, train={"rare_class_temperature": 0.05, "batch_size": 2})
    found = []
    for item in (settings, plain):
        data = open_run_data(item)
        schedule = make_schedule(item, len(data.labeled), data.num_unlabeled, 2)
        second = replace(ALONE, rank=1, world=2)
        batches = open_batches(item.data, item.views, item.train, data, schedule, second, 2, unlabeled=True)
        found.append(batches.next(unlabeled=True))
        assert batches.images == 4
    for one, two in zip(*found, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() & {"target", "valid"}:
            assert torch.equal(one[key], two[key])


def test_loader_processes_without_work_are_told_of(tmp_path):
    told = "data.num_workers: no effect with data.cache=device, which leaves nothing to load"
    assert told in ignored_settings(config(tmp_path, data={"num_workers": 2}))
    assert ignored_settings(config(tmp_path, True, data={"num_workers": 2})) == []
