import json

import pytest
import yaml
from tiny import TINY

from benchmarks.suggest_study import main, write_lists
from protoseg.config.load import parse_config
from protoseg.config.sections import SyntheticConfig
from protoseg.data.synthetic import write_dataset
from protoseg.errors import DataError


@pytest.fixture
def study(tmp_path):
    """A data set of drawn scenes on disk: 2 labelled, 5 unlabelled whose masks are in the full list."""
    scenes = SyntheticConfig(num_labeled=7, num_unlabeled=1, num_val=2, height=40, width=48)
    section = write_dataset(scenes, tmp_path / "data")
    pairs = (tmp_path / "data" / "labeled.txt").read_text().splitlines()
    split = tmp_path / "data" / "splits" / "seed3"
    split.mkdir(parents=True)
    (split / "labeled.txt").write_text("\n".join(pairs[:2]) + "\n")
    (split / "unlabeled.txt").write_text("\n".join(pair.split()[0] for pair in pairs[2:]) + "\n")
    (tmp_path / "data" / "splits" / "train.txt").write_text("\n".join(pairs) + "\n")
    raw = {**TINY, "data": section, "train": {**TINY["train"], "max_steps": 3, "warmup_steps": 1}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path, pairs, raw


@pytest.mark.slow
def test_study(study, capfd):
    folder, pairs, _ = study
    arguments = [
        "--config", folder / "study.yaml", "--labeled", "splits/seed{seed}/labeled.txt",
        "--unlabeled", "splits/seed{seed}/unlabeled.txt", "--train", "splits/train.txt", "--count", 2,
        "--seeds", 3, "--steps", 2, "--suggest=--min-distance=0", "--suggest=--device=cpu",
        "--dir", folder / "runs", "--name", "study", "--results", folder,
    ]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    record = json.loads((folder / "study.json").read_text())
    arms = record["seeds"]["3"]
    assert list(arms) == ["first", "suggested", "random"]
    unlabeled = {pair.split()[0] for pair in pairs[2:]}
    for name, arm in arms.items():
        assert arm["steps"] == 2
        assert arm["seed"] == 3
        assert set(arm["miou"]) == {"linear", "prototype", "fused"}
        if name == "first":
            continue
        assert len(set(arm["added"])) == 2
        assert set(arm["added"]) <= unlabeled
        lists = folder / "runs" / f"seed3_{name}_lists"
        labeled = (lists / "labeled.txt").read_text().splitlines()
        assert labeled[:2] == pairs[:2]
        expected = [str(folder / "data" / image) for image in arm["added"]]
        assert [line.split("\t")[0] for line in labeled[2:]] == expected
        assert set((lists / "unlabeled.txt").read_text().split()) == unlabeled - set(arm["added"])
    difference = arms["suggested"]["miou"]["fused"] - arms["random"]["miou"]["fused"]
    assert record["suggested_minus_random"]["fused"]["3"] == pytest.approx(difference)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/checkpoint/model.safetensors")}
    assert len(times) == 3
    capfd.readouterr()
    assert main([str(a) for a in arguments]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times, "finished runs are not run again"
    assert "label next" not in capfd.readouterr().out
    assert json.loads((folder / "study.json").read_text())["seeds"] == record["seeds"]


def test_lists_of_a_second_training(study):
    folder, pairs, raw = study
    config = parse_config(raw)
    names = [pair.split()[0] for pair in pairs]
    overrides = write_lists(
        config, folder / "lists", pairs[:2], names[2:], [names[5], names[3]], "splits/train.txt"
    )
    assert overrides == [
        f"data.labeled={folder / 'lists' / 'labeled.txt'}",
        f"data.unlabeled={folder / 'lists' / 'unlabeled.txt'}",
    ]
    labeled = (folder / "lists" / "labeled.txt").read_text().splitlines()
    assert labeled[:2] == pairs[:2]
    expected = [[str(folder / "data" / part) for part in pairs[i].split()] for i in (5, 3)]
    assert [line.split("\t") for line in labeled[2:]] == expected
    assert (folder / "lists" / "unlabeled.txt").read_text().split() == [names[2], names[4], names[6]]
    with pytest.raises(DataError, match="was chosen, but"):
        write_lists(config, folder / "lists", pairs[:2], names[2:], [names[0]], "splits/train.txt")


def test_errors_are_one_line(study, capsys):
    folder, _, _ = study
    assert main(["--config", str(folder / "study.yaml"), "--labeled", "gone.txt", "--seeds", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: list=gone.txt not found")
