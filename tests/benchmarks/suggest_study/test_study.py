import json

import pytest
import yaml
from tiny import TINY

from benchmarks.suggest_study import __main__ as command
from benchmarks.suggest_study.__main__ import Setting, main
from benchmarks.suggest_study.runs import labelled_entries, write_lists
from benchmarks.suggest_study.tables import voc_table
from protoseg.config.data import SyntheticConfig
from protoseg.config.load import parse_config
from protoseg.data.synthetic import write_dataset
from protoseg.errors import DataError


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A data set of drawn scenes on disk: 2 labelled, 5 others whose masks are in the full list."""
    scenes = SyntheticConfig(num_labeled=7, num_unlabeled=1, num_val=2, height=40, width=48)
    section = write_dataset(scenes, tmp_path / "data")
    pairs = (tmp_path / "data" / "labeled.txt").read_text().splitlines()
    split = tmp_path / "data" / "splits" / "seed3"
    split.mkdir(parents=True)
    (split / "labeled.txt").write_text("\n".join(pairs[:2]) + "\n")
    (tmp_path / "data" / "splits" / "train.txt").write_text("\n".join(pairs) + "\n")
    raw = {**TINY, "data": section, "train": {**TINY["train"], "max_steps": 3, "warmup_steps": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    setting = Setting(str(tmp_path / "study.yaml"), "splits/seed{seed}/labeled.txt", "splits/train.txt",
                      ("train.max_steps=2",))  # fmt: skip
    monkeypatch.setitem(command.SETTINGS, "voc", setting)
    return tmp_path, pairs, raw


@pytest.mark.slow
def test_study(study, capfd):
    folder, pairs, _ = study
    arguments = ["voc", "--seeds", "3", "--arms", "random", "novelty", "--start-arms",
                 "start_random", "start_clusters", "--dir", str(folder / "runs"),
                 "--results", str(folder)]  # fmt: skip
    assert main(arguments) == 0
    record = json.loads((folder / "suggest_voc.json").read_text())
    arms = record["seeds"]["3"]
    assert list(arms) == ["first", "random", "novelty", "start_random", "start_clusters"]
    others = {pair.split()[0] for pair in pairs[2:]}
    for name, arm in arms.items():
        assert arm["steps"] == 2
        assert arm["seed"] == 3
        assert set(arm["miou"]) == {"linear", "prototype", "fused"}
        lists = folder / "runs" / f"seed3_{name}_lists"
        labeled = [line.split("\t")[0] for line in (lists / "labeled.txt").read_text().splitlines()]
        unlabeled = (lists / "unlabeled.txt").read_text().split()
        assert {*labeled, *unlabeled} == {str(folder / "data" / pair.split()[0]) for pair in pairs}
        assert len(labeled) + len(unlabeled) == len(pairs)
        assert arm["rare_classes"] == arms["first"]["rare_classes"]
        assert 0 < arm["bought"]["objects"] < 1
        if name == "first" or name.startswith("start_"):
            assert len(labeled) == 2
        else:
            assert len(labeled) == 4
            assert len(set(arm["added"])) == 2
            assert {f"images/{image}" for image in arm["added"]} <= others
    assert "| random |" in voc_table(record)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/checkpoint/model.safetensors")}
    assert len(times) == 5
    capfd.readouterr()
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times, "finished runs are not run again"
    assert "candidates" not in capfd.readouterr().err, "what was chosen is kept"
    assert json.loads((folder / "suggest_voc.json").read_text())["seeds"] == record["seeds"]


def test_lists_of_a_training(study):
    folder, pairs, raw = study
    everything = labelled_entries(parse_config(raw), "splits/train.txt")
    paths = [str((folder / "data" / pair.split()[0]).resolve()) for pair in pairs]
    assert list(everything) == paths
    overrides = write_lists(folder / "lists", everything, [paths[5], paths[3]])
    assert overrides == [
        f"data.labeled={folder / 'lists' / 'labeled.txt'}",
        f"data.unlabeled={folder / 'lists' / 'unlabeled.txt'}",
    ]
    lines = (folder / "lists" / "labeled.txt").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        [str(folder / "data" / part) for part in pairs[i].split()] for i in (5, 3)
    ]
    assert (folder / "lists" / "unlabeled.txt").read_text().split() == [paths[i] for i in (0, 1, 2, 4, 6)]
    with pytest.raises(DataError, match="has no mask of it"):
        write_lists(folder / "lists", everything, ["gone.png"])


def test_errors_are_one_line(study, capsys, monkeypatch):
    folder, _, _ = study
    setting = command.SETTINGS["voc"]
    gone = Setting(setting.config, "gone.txt", setting.train, ())
    monkeypatch.setitem(command.SETTINGS, "voc", gone)
    assert main(["voc", "--dir", str(folder / "runs")]) == 1
    assert "gone.txt" in capsys.readouterr().err.splitlines()[-1]
