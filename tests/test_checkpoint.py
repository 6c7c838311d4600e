import errno
import json
import os

import pytest
import torch
from tiny import tiny_info, tiny_segmenter

from protoseg import checkpoint
from protoseg.checkpoint import load_checkpoint, read_info, resolve_checkpoint, save_checkpoint
from protoseg.errors import CheckpointError
from protoseg.weights import writing


@pytest.fixture
def saved(tmp_path):
    segmenter = tiny_segmenter()
    save_checkpoint(tmp_path / "run" / "checkpoint", segmenter, tiny_info(), segmenter.network)
    return tmp_path / "run", segmenter


def test_round_trip_gives_the_same_scores(saved):
    run, segmenter = saved
    image = torch.randint(0, 256, (2, 3, 37, 50), dtype=torch.uint8)
    with torch.no_grad():
        expected = segmenter(image)
        for given in (run, run / "checkpoint", run / "checkpoint" / "model.safetensors"):
            loaded = load_checkpoint(given)
            for ours, theirs in zip(loaded.segmenter(image), expected, strict=True):
                assert torch.equal(ours, theirs)
    assert loaded.info.classes[1].name == "class1"
    assert not loaded.segmenter.training


def test_student_weights_are_kept_apart(tmp_path):
    teacher, student = tiny_segmenter(seed=0), tiny_segmenter(seed=1)
    save_checkpoint(tmp_path / "checkpoint", teacher, tiny_info(), student.network)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        loaded = load_checkpoint(tmp_path, student=True).segmenter(image).linear_logits
        assert torch.equal(loaded, student(image).linear_logits)
        assert not torch.equal(loaded, teacher(image).linear_logits)


def test_inactive_classes_stay_inactive(tmp_path):
    segmenter = tiny_segmenter()
    segmenter.bank.active[1] = False
    save_checkpoint(tmp_path / "checkpoint", segmenter, tiny_info())
    assert load_checkpoint(tmp_path).segmenter.bank.active.tolist() == [True, False, True]


def test_missing_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*protoseg\.train"):
        load_checkpoint(tmp_path / "nothing")


def test_a_changed_byte_is_noticed(saved):
    path = saved[0] / "checkpoint" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its description"):
        load_checkpoint(saved[0])


def test_truncated_weights(saved):
    path = saved[0] / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="changed or cut short"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"unknown": 1}, "unknown"),
        ({"classes": "x"}, "classes"),
    ],
)
def test_foreign_descriptions(saved, change, message):
    path = saved[0] / "checkpoint" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_info(path.parent)


def test_weights_of_another_network(saved):
    path = saved[0] / "checkpoint" / "config.json"
    raw = json.loads(path.read_text())
    raw["classes"] = raw["classes"][:2]
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="does not fit the network it describes"):
        load_checkpoint(saved[0])


def test_a_bundle_is_called_one(saved):
    bundle = saved[0] / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle, and this needs the checkpoint"):
        resolve_checkpoint(bundle)


def test_a_crash_between_the_renames_leaves_the_previous_one(saved):
    folder = saved[0] / "checkpoint"
    folder.rename(folder.with_name("checkpoint.previous"))
    assert resolve_checkpoint(saved[0]) == folder.with_name("checkpoint.previous")
    load_checkpoint(saved[0])


def test_a_failed_write_keeps_the_old_checkpoint(saved, monkeypatch):
    run, segmenter = saved
    before = (run / "checkpoint" / "model.safetensors").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match=r"the disk is full.*unchanged"):
        save_checkpoint(run / "checkpoint", segmenter, tiny_info())
    assert (run / "checkpoint" / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint"]


def test_an_error_inside_the_block_leaves_nothing_half_written(tmp_path):
    def fail():
        with writing(tmp_path / "x") as partial:
            (partial / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("miou", "expected"),
    [
        ({"linear": 0.5, "prototype": 0.4, "fused": 0.45}, "linear"),
        ({"linear": 0.5, "prototype": 0.4, "fused": 0.55}, "fused"),
        ({"linear": 0.5, "prototype": 0.6, "fused": 0.55}, "prototype"),
        ({"linear": 0.5, "prototype": 0.5, "fused": 0.5}, "linear"),
        ({"linear": None, "fused": 0.1}, "fused"),
        ({"linear": 0.5}, "linear"),
        ({}, "linear"),
    ],
)
def test_best_head(miou, expected):
    info = tiny_info().model_copy(update={"metrics": {"val": {"miou": miou}}})
    assert info.best_head() == expected


def test_best_head_without_metrics():
    assert tiny_info().best_head() == "linear"
