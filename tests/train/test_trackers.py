"""Trackers: what each is given, that a run goes on in the same one, and that none stops a training.

The slow tests run whole trainings with the real packages, each where it is installed.
"""

import importlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
import zipfile

import pytest
import yaml
from PIL import Image
from tiny import TINY, quiet_environment

from protoseg.config.load import parse_config
from protoseg.errors import ConfigError
from protoseg.train import trackers
from protoseg.train.tracker_kinds import Run, Tracker
from protoseg.train.trackers import Trackers, require_trackers

SETTINGS = {"train": {"max_steps": 6, "trackers": ["a"]}, "data": {"resize": {"mode": "none"}, "val": None}}


def told(folder, step=0):
    return Run("cracks", "first", folder, SETTINGS, step)


class Broken(Tracker):
    """Works until it is given numbers."""

    def begin(self):
        return "number 7"

    def numbers(self, values, step):
        raise ConnectionError("the server\nis gone")

    def end(self):
        raise AssertionError("a tracker that failed is left alone")


class Whole(Tracker):
    """Keeps what it is given."""

    def begin(self):
        self.got = [("begin", self.known)]
        return "number 8"

    def numbers(self, values, step):
        self.got.append((step, values))

    def end(self):
        self.got.append("end")


def test_a_tracker_that_fails_says_so_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "OWN", {"wandb": Broken, "mlflow": Whole})
    lines = []
    both = Trackers(["wandb", "mlflow", "mlflow"], told(tmp_path), lines.append)
    whole = both.working[1]
    for step in (1, 2, 3):
        both.log({"loss": 1.0 / step, "val": float("nan")}, step)
    both.close(tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("warning: tracker wandb: step 1: the server is gone. The run goes on")
    assert whole.got == [("begin", None), (1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1 / 3}), "end"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "number 7", "mlflow": "number 8"}

    again = Trackers(["mlflow"], told(tmp_path, step=3), lines.append)
    assert again.working[0].got == [("begin", "number 8")]
    # a new run in this folder is not the one that the numbers are of
    assert Trackers(["mlflow"], told(tmp_path), lines.append).working[0].got == [("begin", None)]


def test_a_tracker_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    class Refused(Tracker):
        def begin(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers, "OWN", {"wandb": Refused})
    lines = []
    assert Trackers(["wandb"], told(tmp_path), lines.append).working == []
    assert len(lines) == 1
    assert "tracker wandb: start: [Errno 28] No space left on device" in lines[0]


def test_settings_are_flat_and_plain():
    assert told(None).flat == {
        "train.max_steps": 6, "train.trackers": '["a"]', "data.resize.mode": "none", "data.val": "null",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "near"), [("tensorbord", "tensorboard"), ("comet", "comet_ml"), ("WandB", "wandb"), ("x", None)]
)
def test_an_unknown_tracker_is_an_error_with_the_list(name, near):
    with pytest.raises(ConfigError) as caught:
        parse_config({"train": {"max_steps": 3, "trackers": [name]}})
    text = str(caught.value)
    assert f"there is no tracker '{name}'" in text
    assert "there are tensorboard, wandb, mlflow, trackio, comet_ml" in text
    assert ("did you mean" in text) == (near is not None)
    assert near is None or f"did you mean {near}?" in text


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch):
    require_trackers(["tensorboard"])
    monkeypatch.setattr(sys, "path", [])
    for name in ("wandb", "comet_ml"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(
        ConfigError, match=r"wandb, comet_ml, which is not installed: pip install wandb comet-ml"
    ):
        require_trackers(["wandb", "comet_ml"])


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_has_numbers_settings_and_pictures_and_goes_on(tmp_path):
    Image.new("RGB", (8, 6), (250, 10, 10)).save(tmp_path / "picture.png")
    first = Trackers(["tensorboard"], told(tmp_path), pytest.fail)
    for step in range(1, 6):
        first.log({"val/iou_fused/crack": step / 10}, step)
    first.picture(tmp_path / "picture.png", 3)
    first.close(tmp_path)
    # killed after step 5, and resumed from the state of step 3
    second = Trackers(["tensorboard"], told(tmp_path, step=3), pytest.fail)
    second.log({"val/iou_fused/crack": 0.9}, 4)
    second.close()

    assert len(list((tmp_path / "tensorboard").iterdir())) == 2, "two files of one run, no run beside it"
    events = read_events(tmp_path / "tensorboard")
    scalars = [(e.step, round(e.value, 3)) for e in events.Scalars("val/iou_fused/crack")]
    assert scalars == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.9)]
    assert "settings/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    (image,) = events.Images("validation")
    assert (image.width, image.height) == (8, 6)


def by_mlflow(run, home):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("cracks").experiment_id])
    files = {
        item.path
        for folder in (None, "best", "pictures")
        for item in client.list_artifacts(found.info.run_id, folder)
    }
    assert "config.yaml" in files
    return {
        "name": found.info.run_name,
        "settings": found.data.params,
        "steps": [m.step for m in client.get_metric_history(found.info.run_id, "loss/total")],
        "numbers": set(found.data.metrics),
        "pictures": len([f for f in files if f.startswith("pictures/step_")]),
        "best": "best/model.safetensors" in files,
    }


def by_tensorboard(run, home):
    events = read_events(run / "tensorboard")
    return {
        "name": "tiny",  # the name of the folder is what its page shows
        "settings": {"train.warmup_steps": "2"} if "_hparams_/experiment" in events.summary_metadata else {},
        "steps": [e.step for e in events.Scalars("loss/total")],
        "numbers": set(events.Tags()["scalars"]),
        "pictures": len(events.Images("validation")),
        "others": {"views", "labels", "curves", "class_curves"} - set(events.Tags()["images"]),
        "best": True,  # there is no place for it
    }


def by_trackio(run, home):
    database = sqlite3.connect(home / "trackio" / "cracks.db")
    rows = database.execute("select run_id, run_name, step, metrics from metrics order by step").fetchall()
    assert len({row[0] for row in rows}) == 1
    records = [(row[2], json.loads(row[3])) for row in rows]
    settings = json.loads(database.execute("select config from configs").fetchone()[0])
    (artifact,) = database.execute("select name, type from artifacts").fetchall()
    return {
        "name": rows[0][1],
        "settings": {key: str(value) for key, value in settings.items()},
        "steps": [step for step, record in records if "loss/total" in record],
        "numbers": {key for _, record in records for key in record},
        "pictures": sum("validation" in record for _, record in records),
        "best": artifact == ("tiny-best", "model"),
    }


def by_comet(run, home):
    messages = []
    for path in sorted((run / "comet").glob("*.zip"), key=lambda p: p.stat().st_mtime):
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("experiment.json"))
            assert about["project_name"] == "cracks"
            assert about["offline_id"] == json.loads((run / "trackers.json").read_text())["comet_ml"]
            messages += [json.loads(line)["payload"] for line in archive.read("messages.json").splitlines()]
    metrics = [m["metric"] for m in messages if m.get("metric")]
    uploads = [m for m in messages if "upload_type" in m]
    names = [m["value"] for m in messages if m.get("key") == "Name"]
    return {
        "name": names[0],
        "settings": {
            m["param"]["paramName"]: str(m["param"]["paramValue"]) for m in messages if m.get("param")
        },
        "steps": [m["step"] for m in metrics if m["metricName"] == "loss/total"],
        "numbers": {m["metricName"] for m in metrics},
        "pictures": sum(
            m["upload_type"] == "visualization" and "validation" in json.dumps(m) for m in uploads
        ),
        "best": any("tiny-best" in json.dumps(m) for m in uploads),
    }


def wandb_records(path):
    """Records of a ``.wandb`` file, which is framed as LevelDB's log is."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def by_wandb(run, home):
    found = {"steps": [], "numbers": set(), "pictures": 0, "best": False, "settings": {}}
    ids = set()
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.project == "cracks"
                ids.add(record.run.run_id)
                found["name"] = record.run.display_name
                for item in record.run.config.update:
                    if item.key == "train":
                        train = json.loads(item.value_json)
                        found["settings"] |= {f"train.{key}": str(value) for key, value in train.items()}
            elif kind == "history":
                values = {
                    item.key or ".".join(item.nested_key): item.value_json for item in record.history.item
                }
                found["numbers"] |= set(values)
                found["pictures"] += any(key.startswith("validation") for key in values)
                if "loss/total" in values:
                    found["steps"].append(record.history.step.num)
            elif kind == "artifact" and record.artifact.name == "tiny-best":
                found["best"] = record.artifact.type == "model"
    assert len(ids) == 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tensorboard", by_tensorboard), ("wandb", by_wandb), ("mlflow", by_mlflow), ("trackio", by_trackio),
        ("comet_ml", by_comet),
    ],
)  # fmt: skip
def test_a_tracker_has_project_name_settings_numbers_pictures_and_best_and_goes_on(tmp_path, name, read):
    try:
        module = importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed: pip install {name.replace('_', '-')}")
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs"), "project": "cracks"}
    raw["train"] |= {"max_steps": 4, "eval_every": 2, "trackers": [name]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    own = {"HOME": str(home), "WANDB_MODE": "offline", "TRACKIO_DIR": str(home / "trackio")}
    kept = {k: v for k, v in quiet_environment().items() if not k.startswith(("COMET_", "MLFLOW_", "WANDB_"))}
    for more in ([], ["--resume", "train.max_steps=6"]):
        done = subprocess.run(
            [sys.executable, "-m", "protoseg.train", "--config", str(tmp_path / "tiny.yaml"), *more],
            cwd=work, env=kept | own, text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "warning: tracker" not in done.stdout + done.stderr
        assert "Retrying" not in done.stdout
        assert "rackio" not in done.stdout, "standard output is the run's own"
    assert os.listdir(work) == []  # noqa: PTH208
    found = read(tmp_path / "runs" / "tiny", home)
    assert found["name"] == "tiny", module
    assert str(found["settings"]["train.warmup_steps"]) == "2"
    assert found["steps"] == [1, 2, 3, 4, 5, 6]
    assert {"val/miou_linear", "val/iou_fused/background", "val/iou_linear/ball"} <= found["numbers"]
    assert found["pictures"] == 3
    assert not found.get("others")
    assert found["best"]


@pytest.mark.slow
def test_a_server_that_is_gone_is_one_line_and_the_run_finishes(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    raw["train"] |= {"max_steps": 3, "trackers": ["mlflow", "tensorboard"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    done = subprocess.run(
        [sys.executable, "-m", "protoseg.train", "--config", str(tmp_path / "tiny.yaml")],
        cwd=tmp_path, env=quiet_environment() | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "tracker mlflow" in line]
    assert len(lines) == 1
    assert "start" in lines[0]
    assert [
        e.step for e in read_events(tmp_path / "runs" / "tiny" / "tensorboard").Scalars("loss/total")
    ] == [1, 2, 3]
