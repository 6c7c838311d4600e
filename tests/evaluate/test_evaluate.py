import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PROJECT_ROOT, tiny_config, tiny_info, tiny_segmenter
from torchmetrics.functional.classification import multiclass_jaccard_index

from protoseg.checkpoint import save_checkpoint
from protoseg.config.data import DataConfig
from protoseg.config.training import EvalConfig
from protoseg.data.classes import read_classes
from protoseg.errors import ConfigError
from protoseg.evaluate.__main__ import main
from protoseg.evaluate.measure import evaluate_segmenter, override_data
from protoseg.evaluate.results import Accumulator, format_table
from protoseg.inference import (
    HeadLogits,
    image_batch,
    score,
    sliding_logits,
    upsample,
    whole_logits,
    window_starts,
)
from protoseg.input_rule import ResizeConfig
from protoseg.manifest import ClassInfo
from protoseg.processes import Processes

CPU = torch.device("cpu")
ALONE = Processes()
SIZES = [(40, 48), (33, 61), (64, 32), (1, 1), (50, 50)]


def make_samples(sizes=SIZES, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for height, width in sizes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.integers(0, num_classes, (height, width)).astype(np.uint8)
        mask[: height // 4] = 255
        samples.append((image, mask))
    return samples


def evaluate(segmenter, samples, *, num_classes=3, config=None, resize=None, processes=ALONE, **more):
    info = tiny_info(num_classes)
    rule = info.input.model_copy(update={"resize": resize or ResizeConfig()})
    info = info.model_copy(update={"input": rule})
    return evaluate_segmenter(segmenter, info, samples, processes, config=config, **more)


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter(num_classes=3)


class Oracle(torch.nn.Module):
    """A network whose scores are read off the image: class 1 where red is above 127."""

    def __init__(self, wrong_rows=0, active=True):
        super().__init__()
        self.bank = torch.nn.Module()
        self.bank.register_buffer("active", torch.tensor([active, active, active]))
        self.wrong_rows = wrong_rows

    def forward(self, image):
        from protoseg.models.segmenter import SegmenterOutput

        red = image[:, 0].float() > 127
        linear = torch.stack([~red, red, torch.zeros_like(red)], 1).float() * 8
        prototype = linear.clone()
        prototype[:, :, : self.wrong_rows] = prototype[:, :, : self.wrong_rows].flip(1)
        return SegmenterOutput(linear, prototype)


def half_sample(height=8, width=10):
    """Class 1 in the right half, everywhere visible in the image."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2).astype(np.uint8)
    return image, mask


def test_scores_by_hand():
    # 8 x 10 pixels, 5 columns of each class. In the first two rows the prototype head has the scores of
    # classes 0 and 2 exchanged, so 10 pixels of class 0 become class 2
    result = evaluate(Oracle(wrong_rows=2), [half_sample()])
    assert result.miou["linear"] == 1.0
    assert result.confusion["prototype"].tolist() == [[30, 0, 10], [0, 40, 0], [0, 0, 0]]
    # class 0: 30 / 40; class 1: 40 / 40; class 2 is in no target: left out
    assert result.per_class["prototype"][:2] == [0.75, 1.0]
    assert math.isnan(result.per_class["prototype"][2])
    assert result.miou["prototype"] == 0.875
    assert result.pixel_accuracy["prototype"] == 70 / 80
    # both classes score e^8 / (e^8 + 2): one bin, ECE = |accuracy - confidence|
    confidence = math.exp(8) / (math.exp(8) + 2)
    assert result.ece["linear"] == pytest.approx(1 - confidence, abs=1e-6)
    assert result.ece["prototype"] == pytest.approx(confidence - 0.875, abs=1e-6)
    assert result.num_images == 1
    assert result.boundary_f["linear"] == 1.0


def test_fused_takes_the_mean_of_probabilities():
    linear = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)
    prototype = torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)
    found = score(HeadLogits(linear, prototype), "fused")
    mean = (linear.softmax(1) + prototype.softmax(1)) / 2
    assert found.label.item() == 1
    torch.testing.assert_close(found.confidence.view(1), mean[0, 1].view(1))


def test_confidence_is_the_softmax_of_the_label():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 4
    found = score(HeadLogits(logits, None), "linear")
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert torch.equal(found.label, logits.argmax(1))
    with pytest.raises(ValueError, match="needs prototypes"):
        score(HeadLogits(logits, None), "fused")


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_processes_gives_the_same_result(segmenter, world):
    samples = make_samples()
    alone = evaluate(segmenter, samples)
    collected = []

    @dataclass(frozen=True)
    class Together(Processes):
        """Processes that run one after another: each notes its sums, and the last one gets the total."""

        total: torch.Tensor | None = None

        def reduce(self, value):
            collected.append(value.clone())
            return value if self.total is None else self.total

    for rank in range(world):
        evaluate(segmenter, samples, processes=Together(rank, world))
    assert len(collected) == world, "one reduction a process, also for one without images"
    total = torch.stack(collected).sum(0)
    shared = evaluate(segmenter, samples, processes=Together(0, world, total=total))
    assert shared.to_json() == alone.to_json()
    assert shared.num_images == len(samples)


def test_batches_of_one_size_count_like_single_images(segmenter):
    samples = make_samples([(32, 32)] * 3 + [(32, 48)] + [(32, 32)] * 2)
    single = evaluate(segmenter, samples)
    batched = evaluate(segmenter, samples, config=EvalConfig(batch_size=2))
    assert batched.num_images == 6
    for head in single.heads:
        difference = (single.confusion[head] - batched.confusion[head]).abs().sum()
        # convolutions of another batch size may round differently at a tie
        assert difference <= 2
        assert batched.confusion[head].sum() == single.confusion[head].sum()


def test_the_whole_loop_agrees_with_a_direct_computation(segmenter):
    samples = make_samples([(40, 48), (33, 61)])
    result = evaluate(segmenter, samples)
    labels, targets = [], []
    for image, mask in samples:
        with torch.no_grad():
            logits = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None]).linear_logits
        labels.append(logits.argmax(1).flatten())
        targets.append(torch.from_numpy(mask).flatten().long())
    expected = multiclass_jaccard_index(
        torch.cat(labels), torch.cat(targets), 3, average=None, ignore_index=255
    )
    assert result.per_class["linear"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_logits_are_upsampled_to_the_masks_own_size():
    # working size 4 x 5 of an 8 x 10 image: what counts is the 8 x 10 mask
    resize = ResizeConfig(mode="fixed", height=8, width=10)
    image, mask = half_sample(16, 20)
    result = evaluate(Oracle(), [(image, mask)], resize=resize)
    assert int(result.confusion["linear"].sum()) == 16 * 20
    small = evaluate(Oracle(), [(image, mask)], resize=resize, config=EvalConfig(at_working_size=True))
    assert int(small.confusion["linear"].sum()) == 8 * 10
    assert small.miou["linear"] == 1.0


def test_without_prototypes_only_the_linear_head_is_measured():
    result = evaluate(Oracle(active=False), [half_sample()])
    assert result.heads == ("linear",)
    with pytest.raises(ValueError, match="need prototypes"):
        evaluate(Oracle(active=False), [half_sample()], heads=("fused",))


def test_boundary_can_be_left_out(segmenter):
    result = evaluate(segmenter, make_samples([(8, 8)]), boundary=False)
    assert math.isnan(result.boundary_f["linear"])
    assert result.boundary_f_per_class == {}
    assert result.to_json()["boundary_f"]["linear"] is None


def test_the_mode_from_before_comes_back():
    oracle = Oracle().train()
    evaluate(oracle, [half_sample(), half_sample()])
    assert oracle.training


def test_everything_ignored_is_not_a_number():
    image, mask = half_sample()
    result = evaluate(Oracle(), [(image, np.full_like(mask, 255))])
    assert math.isnan(result.miou["linear"])
    text = json.dumps(result.to_json(["a", "b", "c"]), allow_nan=False)
    assert json.loads(text)["miou"]["linear"] is None
    assert "-" in format_table(result, ["a", "b", "c"])


def test_no_image_and_unequal_sizes_are_errors():
    with pytest.raises(ValueError, match="no image to evaluate"):
        evaluate(Oracle(), [])
    image, mask = half_sample()
    with pytest.raises(ValueError, match=r"image number 0 is 8x10, its mask 4x10"):
        evaluate(Oracle(), [(image, mask[:4])])


def test_window_starts_cover_the_side_and_end_at_the_border():
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == [0]
    assert window_starts(3, 4, 3) == [0]
    for length in range(1, 40):
        starts = window_starts(length, 8, 5)
        covered = {p for s in starts for p in range(s, min(s + 8, length))}
        assert covered == set(range(length))
        assert len(set(starts)) == len(starts)


def test_sliding_equals_whole_for_one_window(segmenter):
    image = image_batch([make_samples([(33, 45)])[0][0]], CPU)
    with torch.no_grad():
        whole = whole_logits(segmenter, image)
        one = sliding_logits(segmenter, image, (64, 64), 2 / 3)
    assert torch.equal(one.linear, whole.linear)
    assert torch.equal(one.prototype, whole.prototype)


class Counting(torch.nn.Module):
    """Scores that tell which window they come from."""

    def __init__(self):
        super().__init__()
        self.bank = torch.nn.Module()
        self.bank.register_buffer("active", torch.tensor([True]))
        self.windows = []

    def forward(self, image):
        from protoseg.models.segmenter import SegmenterOutput

        first = len(self.windows)
        self.windows += [tuple(one.shape[-2:]) for one in image]
        values = torch.arange(first, first + len(image)).float().view(-1, 1, 1, 1)
        scores = values.expand(-1, 2, *image.shape[-2:])
        return SegmenterOutput(scores, -scores)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_overlapping_windows_are_averaged(batch_size):
    # width 7, window 4, stride 0.5: windows 0..3, 2..5, 3..6
    network = Counting()
    logits = sliding_logits(network, torch.zeros(1, 3, 2, 7, dtype=torch.uint8), (4, 4), 0.5, batch_size)
    assert network.windows == [(2, 4)] * 3
    expected = [0, 0, 0.5, 1.0, 1.5, 1.5, 2.0]
    assert logits.linear[0, 0, 0].tolist() == expected
    assert logits.prototype[0, 1, 1].tolist() == [-v for v in expected]


def test_sliding_mode_of_the_oracle_is_perfect():
    config = EvalConfig(mode="sliding", window=(5, 7))
    samples = [half_sample(13, 18), half_sample(3, 40), half_sample(1, 2)]
    assert evaluate(Oracle(), samples, config=config).miou["fused"] == 1.0


def test_upsampling_is_bilinear_with_half_pixel_centres():
    low = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    up = upsample(HeadLogits(low, None), 1, 4)
    assert up.linear.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert upsample(HeadLogits(low, None), 1, 2).linear is low


def test_an_accumulator_adds_up_over_processes_in_one_reduction():
    calls = []
    counts = Accumulator.empty(2, 3, CPU)
    counts.confusion[1, 2, 0] = 5
    counts.boundary[0, 1, 2] = 7
    counts.num_images += 2
    doubled = counts.reduced(lambda value: calls.append(value.shape) or 2 * value)
    assert len(calls) == 1
    assert (doubled.confusion[1, 2, 0], doubled.boundary[0, 1, 2], doubled.num_images) == (10, 14, 4)


def test_data_overrides():
    data = tiny_config().data
    changed = override_data(data, ["data.synthetic.num_val=9", "on_error=skip"])
    assert (changed.synthetic.num_val, changed.on_error) == (9, "skip")
    with pytest.raises(ConfigError, match="nonsense"):
        override_data(data, ["nonsense=1"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a checkpoint of the embedded set, teacher and student unequal."""
    classes = read_classes(tiny_config().data)
    teacher, student = (tiny_segmenter(len(classes), seed=seed) for seed in (0, 1))
    info = tiny_info(len(classes)).model_copy(update={"classes": classes})
    folder = tmp_path_factory.mktemp("trained")
    save_checkpoint(folder / "checkpoint", teacher, info, student.network)
    return folder


@pytest.fixture
def run_folder(tmp_path, trained):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_command_writes_numbers_and_picture_into_the_run_folder(run_folder, run_module):
    finished = run_module("protoseg.evaluate", run_folder)
    assert finished.returncode == 0, finished.stderr
    report = json.loads((run_folder / "evaluation.json").read_text())
    assert set(report["miou"]) == {"linear", "prototype", "fused"}
    assert report["num_images"] == 3
    table = np.array(report["confusion"]["linear"])
    assert np.diag(table).sum() / table.sum() == pytest.approx(report["pixel_accuracy"]["linear"])
    assert report["student"]["miou"]["linear"] != report["miou"]["linear"]
    names = [item.name for item in read_classes(tiny_config().data)]
    assert list(report["per_class"]["linear"]) == names
    with Image.open(run_folder / "confusion.png") as picture:
        assert picture.size[0] > 300
    printed = finished.stdout
    assert "teacher, 3 images of val" in printed
    assert f"{100 * report['miou']['fused']:.2f}" in printed
    assert "student" in printed


def test_command_options(run_folder, tmp_path, capsys):
    out, picture = tmp_path / "deep" / "e.json", tmp_path / "deep" / "c.png"
    arguments = [run_folder, "--json", out, "--confusion", picture, "--split", "labeled", "--teacher-only",
                 "--heads", "linear", "--mode", "sliding", "--no-boundary", "--device", "cpu",
                 "--data", "synthetic.num_labeled=2"]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    report = json.loads(out.read_text())
    assert picture.is_file()
    assert (list(report["miou"]), report["num_images"], report["split"]) == (["linear"], 2, "labeled")
    assert "student" not in report
    assert report["eval"]["mode"] == "sliding"
    assert not (run_folder / "evaluation.json").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run"], "no checkpoint at no-such-run"),
        (["RUN", "--data", "root=nowhere", "kind=files"], "data.kind=files needs"),
        (["RUN", "--device", "warp"], "device 'warp' cannot be used"),
        (["RUN", "--data", "bad"], "must have the form key.sub=value"),
    ],
)
def test_command_explains_what_is_wrong(run_folder, capsys, arguments, message):
    filled = [str(run_folder) if a == "RUN" else a for a in arguments]
    assert main(["--device", "cpu", *filled]) == 1
    assert message in capsys.readouterr().err


def test_a_corrupt_validation_image_is_named(run_folder, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8 this is no JPEG")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    (folder / "val.txt").write_text("a.jpg a.png\n")
    overrides = [
        "kind=files",
        f"root={folder}",
        "labeled=val.txt",
        "val=val.txt",
        'classes=["a","b","c","d","e"]',
    ]
    assert main([str(run_folder), "--device", "cpu", "--data", *overrides]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: image ")
    assert "a.jpg cannot be decoded" in last
    assert not (run_folder / "evaluation.json").exists()


def leaves(value, path=""):
    """Values of nested JSON by their paths."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, item in items:
        found |= leaves(item, f"{path}.{key}")
    return found


@pytest.mark.slow
def test_two_processes_write_what_one_writes(run_folder, tmp_path, run_module):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    picture = tmp_path / "c.png"
    assert main([*map(str, (run_folder, "--json", one, "--confusion", picture)), "--device", "cpu"]) == 0
    file = PROJECT_ROOT / "configs" / "accelerate" / "cpu_2.yaml"
    launcher = ["env", "ACCELERATE_USE_CPU=true", "accelerate", "launch", "--config_file", str(file), "-m"]
    finished = run_module(
        "protoseg.evaluate", run_folder, "--json", two, "--confusion", picture, launcher=launcher
    )
    assert finished.returncode == 0, finished.stderr
    alone, shared = json.loads(one.read_text()), json.loads(two.read_text())
    assert shared["confusion"] == alone["confusion"]
    # sums of confidences depend on the number of threads in the last digits
    parts = [leaves(report) for report in (shared, alone)]
    numbers = [{k: v for k, v in part.items() if isinstance(v, float)} for part in parts]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    rest = [{k: v for k, v in part.items() if k not in numbers[1]} for part in parts]
    assert rest[0] == rest[1]
    assert finished.stdout.count("teacher, 3 images") == 1


def test_info_without_student_and_files_data(tmp_path, capsys):
    """Own data through lists, other classes, no student's weights."""
    samples = make_samples([(20, 24), (33, 17)], num_classes=2)
    for index, (image, mask) in enumerate(samples):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / f"{index}_mask.png")
    (tmp_path / "val.txt").write_text("".join(f"{i}.png {i}_mask.png\n" for i in range(2)))
    data = DataConfig(
        kind="files", root=str(tmp_path), labeled="val.txt", val="val.txt", classes=["a", "b", "c"]
    )
    classes = [ClassInfo(name=name, color=(0, 0, i)) for i, name in enumerate("abc")]
    info = tiny_info(3).model_copy(update={"data": data, "classes": classes})
    segmenter = tiny_segmenter(3)
    save_checkpoint(tmp_path / "run" / "checkpoint", segmenter, info)
    assert main([str(tmp_path / "run" / "checkpoint" / "config.json"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    direct = evaluate(segmenter, samples)
    assert report["miou"] == direct.to_json()["miou"]
    assert report["per_class"]["linear"]["c"] is None
    assert len(report["list_sha256"]) == 64
    capsys.readouterr()
