"""The card says what checkpoint and bundle say, and belongs to whoever edits it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from share.conftest import PRIVATE
from tiny import tiny_segmenter

from protoseg.checkpoint import read_info, save_checkpoint
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo
from protoseg.share.card import edited, main, write_card


def test_the_metadata_is_what_the_hub_reads(run: Path) -> None:
    card = ModelCard.load(write_card(run, "cc-by-4.0", ["me/camvid"]))
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert (data["pipeline_tag"], data["library_name"]) == ("image-segmentation", "protoseg")
    assert data["datasets"] == ["me/camvid"]
    assert {"semantic-segmentation", "onnx", "deeplabv3plus"} <= set(data["tags"])
    results = {(item.metric_type, item.metric_name): item for item in card.data.eval_results}
    found = results["mean_iou", "mean IoU, prototype head"]
    assert (found.metric_value, found.dataset_split) == (0.6123, "validation")
    assert found.dataset_args == {"labeled": "a" * 64, "val": "b" * 64}
    assert len(results) == 4


def test_the_text_tells_classes_data_network_and_proof(run: Path) -> None:
    text = write_card(run).read_text(encoding="utf-8")
    for line in (
        "| 0 | class0 | `#000ac8` | 50.0 | 80.0 |",
        "| 2 | class2 | `#500a78` | 50.0 | – |",
        "|  | **mean IoU** |  | 50.0 | 61.2 |",
        f"| labeled | `lists/labeled.txt` | – | `{'a' * 64}` |",
        f"| val | `val.txt` | 7 | `{'b' * 64}` |",
        "| network | deeplabv3plus on `test_resnet` |",
        "| started from | `encoder.safetensors` |",
        "![Loss and mean IoU over the training](curves.png)",
        "(pictures/step_00000002.png)",
        'protoseg.load("hf://USER/NAME")',
        "- IoU below 50 %: class1.",
    ):
        assert line in text
    assert "| `model.onnx` | fp32 |" in text
    assert "Unknown: its owner has named none" in text
    assert PRIVATE not in text
    assert "somebody" not in text


def test_the_same_model_gives_the_same_card(run: Path) -> None:
    first = write_card(run, "mit").read_bytes()
    assert write_card(run).read_bytes() == first
    other = write_card(run, "apache-2.0").read_bytes()
    assert other != first
    assert write_card(run, "mit").read_bytes() == first


def test_an_edited_card_is_not_written_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_card(run, "mit")
    mine = file.read_text(encoding="utf-8").replace("# tiny", "# Cracks in bridges")
    assert edited(mine)
    file.write_text(mine, encoding="utf-8")
    assert main([str(run)]) == 1
    assert "README.md was edited, and stays as it is; --force" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == mine
    assert main([str(run), "--force"]) == 0
    assert "license: mit" in file.read_text(encoding="utf-8")
    file.write_text("No card of ours.", encoding="utf-8")
    with pytest.raises(UserError, match="was edited"):
        write_card(run)


def test_a_bundle_alone_has_a_card_too(run: Path) -> None:
    text = write_card(run / "bundle").read_text(encoding="utf-8")
    assert "# nearest-color" in text
    assert "it runs on ONNX Runtime, without torch" in text
    assert "deeplabv3plus" not in text
    assert not (run / "README.md").exists()


def test_a_class_name_ends_no_cell_and_no_card(run: Path) -> None:
    info = read_info(run / "checkpoint")
    odd = [ClassInfo(name=name, color=(0, 0, 0)) for name in ("a|b", "--- <!-- x", 'c: "d"')]
    save_checkpoint(
        run / "checkpoint", tiny_segmenter(), info.model_copy(update={"classes": odd, "metrics": {}})
    )
    text = write_card(run).read_text(encoding="utf-8")
    assert "| 0 | a\\|b | `#000000` |" in text
    assert "It was not evaluated." in text
    assert not edited(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent"], "absent is no folder"),
        (["."], "holds no checkpoint and no bundle"),
        (["RUN", "--license", "My Licence"], "--license takes an identifier of the Hub"),
        (["RUN", "--dataset", "a b"], "--dataset takes the id of a data set"),
    ],
)
def test_what_has_no_card_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(run) if word == "RUN" else word for word in arguments]) == 1
    assert says in capsys.readouterr().err
    assert not (run / "README.md").exists()
