"""Every command answers to ``python -m``; settings, options and file names mix in any order."""

import runpy
import sys
from pathlib import Path

import pytest

from protoseg.evaluate import __main__ as evaluate
from protoseg.predict import __main__ as predict
from protoseg.split import __main__ as split
from protoseg.train import __main__ as train


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "name", ["train", "check", "split", "evaluate", "predict", "suggest", "data.synthetic"]
)
def test_every_command_runs_as_a_module(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"protoseg.{name}", run_name="__main__")
    assert caught.value.code == 0
    assert f"-m protoseg.{name} [-h]" in capsys.readouterr().out


def test_settings_and_options_of_the_trainer_mix():
    found = train.parse_arguments(["train.max_steps=3", "--config", "X", "train.seed=1", "--resume", "a.b=2"])
    assert (found.config, found.resume) == ("X", True)
    assert found.overrides == ["train.max_steps=3", "train.seed=1", "a.b=2"]


def test_an_unknown_option_is_still_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        train.parse_arguments(["train.max_steps=3", "--confg", "X"])
    assert caught.value.code == 2
    assert "--confg" in capsys.readouterr().err


def test_data_settings_of_an_evaluation_add_up():
    found = evaluate.parse_arguments(
        ["RUN", "--data", "root=a", "--split", "val", "--data", "val=b", "labeled=c"]
    )
    assert found.checkpoint == "RUN"
    assert found.data == ["root=a", "val=b", "labeled=c"]
    assert evaluate.parse_arguments(["--teacher-only", "RUN"]).data == []


def test_images_of_a_prediction_stand_on_both_sides_of_options():
    found = predict.parse_arguments(["RUN", "a.png", "-o", "out", "b.png", "--student", "c"])
    assert (found.model, found.inputs) == ("RUN", [Path("a.png"), Path("b.png"), Path("c")])
    assert found.output == Path("out")


def test_folders_of_a_split_stand_on_both_sides_of_options(tmp_path, capsys):
    code = split.main(
        [str(tmp_path / "images"), "--labeled", "2", str(tmp_path / "masks"), "-o", str(tmp_path)]
    )
    assert code == 1
    assert "images" in capsys.readouterr().err
