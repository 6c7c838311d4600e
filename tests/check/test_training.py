"""What a training stops at beside its data, the check finds first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_info, tiny_segmenter

from protoseg.check.__main__ import main
from protoseg.check.inspect import inspect
from protoseg.checkpoint import save_checkpoint


def findings(quick: bool, **sections: dict[str, object]) -> str:
    report = inspect(tiny_config(**sections), quick=quick)
    assert report.ok == (not report.problems)
    return "\n".join(report.problem_lines())


@pytest.mark.parametrize(
    ("sections", "message", "quick"),
    [
        ({"model": {"encoder": "resnet5000"}}, "timm has no model 'resnet5000'", True),
        ({"model": {"pretrained": "gone.pth"}}, "gone.pth: no such file", True),
        ({"model": {"pretrained": "package"}}, "got model.encoder=test_resnet", True),
        ({"model": {"pretrained": "empty.pth"}}, "is not a mapping of names to tensors", False),
        ({"model": {"architecture": "unetplusplus"}}, "has no single number of decoder channels", False),
        ({"train": {"start_from": "gone"}}, "no checkpoint at gone", False),
        ({"train": {"batch_size": 1}}, "batch norm after its global pooling needs two images", False),
        ({"train": {"warmup_steps": 8}}, "leaves no step for unlabelled images", False),
    ],
)
def test_each_stop_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, dict[str, object]], message: str,
    quick: bool,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save({}, "empty.pth")
    assert message in findings(False, **sections)
    assert (message in findings(True, **sections)) == quick
    assert findings(True) == findings(False) == ""


def test_a_start_of_other_classes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny_segmenter(3), tiny_info(3))
    train = {"start_from": str(tmp_path)}
    assert "has the classes class0, class1, class2; this run has" in findings(False, train=train)
    # the encoder's own weights would be written over, so they are not looked for
    assert "gone.pth" not in findings(True, train=train, model={"pretrained": "gone.pth"})


def test_the_command_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["data.synthetic.num_unlabeled=2", "data.synthetic.num_val=1", f"run.dir={tmp_path}"]
    assert main(["--quick", *size, "model.encoder=resnet5000"]) == 1
    assert "timm has no model" in capsys.readouterr().out
