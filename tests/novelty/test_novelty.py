import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import photo, tiny_run, tiny_segmenter

from export.graph.module import ExportModule
from export.graph.trace import ExportSettings, check_settings
from export.proof.compare import Comparator
from export.proof.gates import GATES
from export.proof.judge import judge
from protoseg.checkpoint import NOVELTY_NAME, load_checkpoint, read_info, read_novelty, save_novelty
from protoseg.config.training import EvalConfig
from protoseg.errors import CheckpointError, ExportError
from protoseg.inference import image_batch, image_logits, inference, sliding_logits
from protoseg.models.novelty import NoveltyHead, NoveltyScale
from protoseg.models.segmenter import Segmenter
from protoseg.novelty.__main__ import main
from protoseg.novelty.fit import fit_prototypes
from protoseg.predict.__main__ import main as predict

SCALE = NoveltyScale((1.0, 2.0), (0.2, 0.1), 1.5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(tmp_path / "run", 5)


def head_for(segmenter: Segmenter, scale: NoveltyScale = SCALE) -> NoveltyHead:
    dim = segmenter.network.backbone.stage_channels[-1]
    return NoveltyHead(torch.randn(6, dim, generator=torch.Generator().manual_seed(0)), scale)


def test_the_distance_is_to_the_nearest_prototype_of_any_class() -> None:
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    noise = 0.01 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    features = {0: directions[[0, 1]].repeat(30, 1) + noise, 3: 7 * directions[[2]].repeat(60, 1) + noise}
    prototypes = fit_prototypes(features, 2, np.random.default_rng(0))
    assert prototypes.shape == (4, 3)
    pixels = torch.stack([*(5 * directions), torch.tensor([1.0, 1, 0]), torch.tensor([-1.0, -1, -1])], 1)
    found = NoveltyHead(prototypes, SCALE).distance(pixels.view(1, 3, 1, 5)).flatten()
    expected = torch.tensor([0, 0, 0, 1 - 0.5**0.5, 1 + 3**-0.5])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_novelty_is_half_at_the_threshold() -> None:
    head = NoveltyHead(torch.tensor([[0.0, 3.0]]), NoveltyScale((0.25, 0.5), (0.2, 0.1), 1.5))
    # a distance of 1 is 1.5 deviations, a largest probability of 0.8 is none: just at the threshold
    stage = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    logits = torch.tensor([4.0, 1.0]).log().view(1, 2, 1, 1)
    assert head(stage, logits).item() == pytest.approx(0.5)
    assert head(stage - torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), logits).item() > 0.5
    assert head(stage, 2 * logits).item() < 0.5


def test_autocast_does_not_change_it() -> None:
    segmenter = tiny_segmenter()
    head = head_for(segmenter)
    stage = torch.randn(1, head.prototypes.shape[1], 3, 3)
    logits = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(stage, logits)
    torch.testing.assert_close(found, head(stage, logits))


def test_windows_of_the_whole_image_give_the_whole_images_novelty() -> None:
    segmenter = tiny_segmenter()
    image = image_batch([photo(0, 40, 48)], torch.device("cpu"))
    with inference(segmenter):
        assert image_logits(segmenter, image, EvalConfig(), (40, 48)).novelty is None
        segmenter.use_novelty(head_for(segmenter))
        whole = image_logits(segmenter, image, EvalConfig(), (40, 48))
        windows = sliding_logits(segmenter, image, (32, 32), 0.5)
        segmenter.use_novelty(None)
        without = image_logits(segmenter, image, EvalConfig(), (40, 48))
    assert whole.novelty is not None
    assert windows.novelty is not None
    assert whole.novelty.shape == windows.novelty.shape == (1, 1, 40, 48)
    torch.testing.assert_close(without.linear, whole.linear, rtol=0, atol=0)


def test_the_exported_module_computes_the_same(run: Path) -> None:
    assert main([str(run), "--device", "cpu"]) == 0
    segmenter = load_checkpoint(run).segmenter
    image = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    for head in ("linear", "fused"):
        module = ExportModule(segmenter, head).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            found = dict(zip(module.output_names, module(image), strict=True))["novelty"]
            expected = segmenter.with_novelty(image)[1]
        assert expected is not None
        assert expected.std() > 0.01
        # the tiny network is sure of nothing, so that its doubt hardly deviates, and rounding counts for more
        torch.testing.assert_close(found, expected[:, 0], rtol=0, atol=5e-5)
    (run / "checkpoint" / NOVELTY_NAME).unlink()
    with pytest.raises(ExportError, match="protoseg novelty"):
        check_settings(load_checkpoint(run), ExportSettings(outputs=("labels", "confidence", "novelty")))


def test_a_graph_that_computes_another_novelty_is_not_proven() -> None:
    labels = np.tile(np.array([[[0, 1], [1, 0]]], np.uint8), (1, 4, 4))
    right = {"labels": labels, "novelty": np.full(labels.shape, 0.2, np.float32)}
    for change, gate, caught in ((1e-4, "fp32", False), (0.01, "fp32", True), (0.01, "fp16", False)):
        comparator = Comparator(2, "linear", np.ones(2, bool), {"labels", "novelty"})
        comparator.add("a", right, {**right, "novelty": right["novelty"] + np.float32(change)})
        failures = judge(comparator, GATES[gate], "torch", "other").failures
        assert any("novelty differs by 0.01" in text for text in failures) == caught, (change, gate)


def test_the_command_fits_what_predict_then_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photo(1)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert predict([str(run), str(tmp_path / "a.png"), "-o", str(out), "--device", "cpu"]) == 0
    assert not (out / "novelty").exists()
    assert main([str(run), "--false-alarms", "0.2", "--device", "cpu"]) == 0
    assert "20.0% of validation pixels" in capsys.readouterr().out
    head, info = read_novelty(run / "checkpoint")
    assert (info.labeled_images, info.val_images) == (4, 3)
    assert info.weights_sha256 == read_info(run / "checkpoint").weights_sha256
    first = head.prototypes.clone()
    assert main([str(run), "--false-alarms", "0.2", "--device", "cpu"]) == 0
    second = read_novelty(run / "checkpoint")[0].prototypes
    assert torch.equal(second, first), "the same lists give the same fit"

    assert predict([str(run), str(tmp_path / "a.png"), "-o", str(out), "--device", "cpu"]) == 0
    grey = np.asarray(Image.open(out / "novelty" / "a.png"))
    row = next(csv.DictReader((out / "predictions.csv").open()))
    assert grey.shape == (40, 48)
    assert row["novelty"] == "novelty/a.png"
    assert float(row["novel_share"]) == pytest.approx((grey >= 128).mean(), abs=0.01)
    again = ["-o", str(tmp_path / "without"), "--no-novelty", "--device", "cpu"]
    assert predict([str(run), str(tmp_path / "a.png"), *again]) == 0
    assert not (tmp_path / "without" / "novelty").exists()


def test_the_share_of_false_alarms_on_val_is_what_was_asked_for(run: Path) -> None:
    assert main([str(run), "--false-alarms", "0.1", "--device", "cpu"]) == 0
    checkpoint = load_checkpoint(run)
    from protoseg.data.sources import open_source

    source = open_source(checkpoint.info.data, "val", checkpoint.info.classes)
    shares = []
    with inference(checkpoint.segmenter):
        for number in range(len(source)):
            image = image_batch([source.image(number)], torch.device("cpu"))
            found = checkpoint.segmenter.with_novelty(image)[1]
            assert found is not None
            shares.append(float((found >= 0.5).float().mean()))
    assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


def test_what_was_fitted_to_other_weights_is_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([str(run), "--device", "cpu"]) == 0
    assert load_checkpoint(run).segmenter.novelty is not None
    head, info = read_novelty(run / "checkpoint")
    save_novelty(run / "checkpoint", head, info.model_copy(update={"weights_sha256": "0" * 64}))
    assert load_checkpoint(run).segmenter.novelty is None
    assert "fitted to other weights" in caplog.text
    (run / "checkpoint" / NOVELTY_NAME).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"novelty\.safetensors"):
        load_checkpoint(run)


@pytest.mark.parametrize(
    ("extra", "text"),
    [(["--val", "nowhere.txt"], "leave --labeled and --val out"), (["--device", "cudx"], "cannot be used")],
)
def test_refusals(run: Path, capsys: pytest.CaptureFixture[str], extra: list[str], text: str) -> None:
    assert main([str(run), *extra]) == 1
    assert text in capsys.readouterr().err
    assert not (run / "checkpoint" / NOVELTY_NAME).exists()
    with pytest.raises(SystemExit):
        main([str(run), "--false-alarms", "1.5"])
