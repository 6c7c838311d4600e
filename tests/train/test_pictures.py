"""Pictures of a run: when they are drawn, who gets them, and that none ends a run."""

import json

import pytest
import yaml
from tiny import TINY

from protoseg.draw import plots, views
from protoseg.train import trackers
from protoseg.train.__main__ import main
from protoseg.train.tracker_kinds import Tracker


class Album(Tracker):
    """Keeps the names and steps of pictures."""

    def begin(self):
        return "album"

    def numbers(self, values, step):
        pass

    def picture(self, path, step, name):
        assert path.is_file()
        self.run.settings.setdefault("album", []).append((step, name))

    def end(self):
        (self.run.folder / "album.json").write_text(json.dumps(self.run.settings["album"]))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the tiny configuration for three steps in this process; the exit code."""
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    raw["train"] |= {"max_steps": 3, "eval_every": 3, "trackers": ["tensorboard"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(trackers, "OWN", {"tensorboard": Album})
    return lambda *arguments: main(["--config", str(tmp_path / "tiny.yaml"), *arguments])


def test_pictures_go_to_trackers_and_a_fault_of_one_is_one_line(train, tmp_path, monkeypatch, capsys):
    def broken(*_arguments):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(plots, "class_curves", broken)
    assert train("views.mixing_probability=1", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    faults = [item["text"] for item in events if "not drawn" in item.get("text", "")]
    assert faults == [
        "warning: step 3: class_curves.png is not drawn: no font at all. The run goes on without it"
    ]
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "album.json").read_text()) == [
        [0, "labels"], [0, "views"], [2, "views"], [3, "validation"], [3, "curves"], [3, "labels"],
    ]  # fmt: skip
    names = ["pictures/step_00000003.png", "views.png", "labels.png", "curves.png"]
    assert events[-1]["picture_files"] == [str(run / name) for name in names]


def test_a_mixed_batch_is_waited_for(train, monkeypatch):
    looked, drawn = [], []
    monkeypatch.setattr(
        views, "first_mixed", lambda *_: looked.append(1) or (0 if len(looked) == 2 else None)
    )
    monkeypatch.setattr(views, "unlabeled_views", lambda path, *_: (drawn.append(_[-1]), path.touch()))
    assert train("train.max_steps=5", "train.warmup_steps=0", "train.eval_every=5") == 0
    assert drawn == [0, 1], "the first batch, and the first that is mixed"
    assert len(looked) == 2
