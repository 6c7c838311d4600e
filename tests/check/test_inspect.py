from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from protoseg.check.__main__ import main
from protoseg.check.findings import Report
from protoseg.check.inspect import inspect
from protoseg.check.memory import image_bytes
from protoseg.config.load import parse_config
from protoseg.config.model import ModelConfig
from protoseg.config.sections import Config
from protoseg.data.images import save_image, save_mask

PROJECT = Path(__file__).resolve().parents[2]
TINY = {
    "architecture": "deeplabv3plus",
    "encoder": "test_resnet",
    "decoder_channels": 32,
    "pretrained": "none",
}
SCENES = {"num_labeled": 4, "num_unlabeled": 5, "num_val": 2, "height": 32, "width": 40}


def raw_config(root: Path, **data: object) -> dict[str, object]:
    return {
        "run": {"dir": str(root / "runs"), "name": "t"},
        "model": {**TINY, "pretrained": "timm"},  # never fetched by the doctor
        "views": {"crop": [16, 16]},
        "data": {
            "kind": "files", "root": str(root), "labeled": "labeled.txt",
            "unlabeled": "unlabeled.txt", "val": "val.txt", "classes": ["ground", "thing", "other"],
            **data,
        },
    }  # fmt: skip


def config(root: Path, **data: object) -> Config:
    return parse_config(raw_config(root, **data))


def write_lists(root: Path, labeled: list[str], unlabeled: list[str], val: list[str]) -> None:
    for name, stems in (("labeled", labeled), ("val", val)):
        lines = "".join(f"images/{s}.png masks/{s}.png\n" for s in stems)
        (root / f"{name}.txt").write_text(lines)
    (root / "unlabeled.txt").write_text("".join(f"images/{s}.png\n" for s in unlabeled))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Labelled l0..l11, unlabelled u0..u3, validation v0..v3; 24x20 pixels, three classes."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    stems = {"l": 12, "u": 4, "v": 4}
    for letter, count in stems.items():
        for number in range(count):
            name = f"{letter}{number}.png"
            image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            save_image(tmp_path / "images" / name, image)
            mask = np.zeros((20, 24), np.uint8)
            mask[:10, :12] = 1
            mask[10:, 12:] = 2
            mask[:, 11:13] = 255
            save_mask(tmp_path / "masks" / name, mask, [])
    names = {k: [f"{k}{i}" for i in range(n)] for k, n in stems.items()}
    write_lists(tmp_path, names["l"], names["u"], names["v"])
    return tmp_path


def counts(report: Report) -> dict[str, int]:
    return {kind: problem.count for kind, problem in report.problems.items()}


def only(report: Report, kind: str) -> str:
    assert report.problems[kind].count == 1
    return report.problems[kind].examples[0]


@pytest.mark.parametrize("quick", [True, False])
def test_good_data_has_no_finding(good: Path, quick: bool) -> None:
    report = inspect(config(good), quick=quick)
    assert report.ok
    assert counts(report) == {}
    assert report.facts["splits"]["labeled"]["images"] == 12
    assert len(report.facts["splits"]["val"]["sha256"]) == 64


def test_shares_are_of_labelled_pixels(good: Path) -> None:
    report = inspect(config(good), quick=False)
    # 440 of 480 pixels count: 110 of thing, 110 of other, 220 of ground
    assert report.facts["class_shares"] == {
        "ground": {"labeled": 0.5, "val": 0.5},
        "thing": {"labeled": 0.25, "val": 0.25},
        "other": {"labeled": 0.25, "val": 0.25},
    }
    assert report.facts["ignored_share"]["labeled"] == pytest.approx(40 / 480)
    assert report.facts["image_sizes"] == {"24x20": 20}


def test_missing_files_name_their_lines(good: Path) -> None:
    (good / "images/l3.png").unlink()
    (good / "masks/l5.png").unlink()
    (good / "images/u2.png").unlink()
    for quick in (True, False):
        report = inspect(config(good), quick=quick)
        assert counts(report) == {"missing": 3}
        text = "\n".join(report.problems["missing"].examples)
        assert "labeled.txt, line 4: image images/l3.png not found" in text
        assert "labeled.txt, line 6: mask masks/l5.png not found" in text
        assert "unlabeled.txt, line 3: image images/u2.png not found" in text


def test_broken_images_and_masks(good: Path) -> None:
    path = good / "images/l10.png"
    path.write_bytes(path.read_bytes()[:200])
    (good / "images/u3.png").write_bytes(b"")
    (good / "masks/v1.png").write_bytes(b"junk")
    report = inspect(config(good), quick=False)
    assert counts(report) == {"unreadable-image": 2, "unreadable-mask": 1}
    assert "l10.png cannot be decoded" in report.problems["unreadable-image"].examples[0]
    assert "v1.png cannot be decoded" in only(report, "unreadable-mask")
    skipping = inspect(config(good, on_error="skip"), quick=False)
    assert skipping.problems["unreadable-image"].level == "warning"
    assert skipping.problems["unreadable-mask"].level == "error"


def test_corrupt_jpeg_is_named(good: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(good / "images/cut.jpg")
    data = (good / "images/cut.jpg").read_bytes()
    (good / "images/cut.jpg").write_bytes(data[: len(data) - 100])
    (good / "unlabeled.txt").write_text("images/u0.png\nimages/cut.jpg\n")
    assert "cut.jpg cannot be decoded" in only(inspect(config(good), quick=False), "unreadable-image")


def test_mask_of_another_size(good: Path) -> None:
    save_mask(good / "masks/l11.png", np.zeros((20, 25), np.uint8), [])
    save_mask(good / "masks/l4.png", np.zeros((24, 20), np.uint8), [])
    report = inspect(config(good), quick=False)
    assert counts(report) == {"size-mismatch": 2}
    turned, other = report.problems["size-mismatch"].examples
    assert "l4.png is 24x20, its mask 20x24" in turned
    assert "EXIF" in turned
    assert "l11.png is 24x20, its mask 25x20" in other


def test_unknown_mask_values_are_listed_with_their_files(good: Path) -> None:
    for name, value in (("l2", 7), ("l9", 3), ("v3", 3)):
        mask = np.zeros((20, 24), np.uint8)
        mask[0, :5] = value
        save_mask(good / f"masks/{name}.png", mask, [])
    report = inspect(config(good), quick=False)
    assert counts(report) == {"mask-values": 3}
    text = "\n".join(report.problems["mask-values"].examples)
    assert "l2.png has value(s) without a class: 7 (5 pixels)" in text
    assert "l9.png has value(s) without a class: 3 (5 pixels)" in text
    assert "v3.png" in text


def test_two_value_masks_without_a_label_map(good: Path) -> None:
    for path in (good / "masks").iterdir():
        save_image(path, np.eye(20, 24, dtype=np.uint8) * 255)
    for quick in (True, False):
        report = inspect(config(good, classes=["ground", "thing"]), quick=quick)
        assert not report.ok
        setting = """data.label_map='{"0": "ground", "255": "thing"}'"""
        assert setting in only(report, "two-value")
        # which of three classes they are, nobody can tell
        assert "name two classes" in only(inspect(config(good), quick=quick), "two-value")
    fixed = inspect(config(good, label_map={"0": 0, "255": "thing"}), quick=False)
    assert fixed.ok
    assert counts(fixed) == {"empty-class": 1}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("split", ["labeled", "val"])
def test_a_split_without_a_labelled_pixel_is_an_error(good: Path, split: str, quick: bool) -> None:
    stems = [f"{split[0]}{i}" for i in range(12 if split == "labeled" else 4)]
    for stem in stems:
        save_mask(good / f"masks/{stem}.png", np.full((20, 24), 255, np.uint8), [])
    report = inspect(config(good), quick=quick)
    assert not report.ok
    assert f"data.{split}: no mask has a pixel of a class" in only(report, "no-labels")
    mask = np.full((20, 24), 255, np.uint8)
    mask[3, 4:6] = 1, 2
    save_mask(good / f"masks/{stems[-1]}.png", mask, [])
    assert inspect(config(good), quick=quick).ok


@pytest.mark.parametrize("quick", [True, False])
def test_labels_of_one_class_are_an_error(good: Path, quick: bool) -> None:
    for path in (good / "masks").iterdir():
        save_mask(path, np.ones((20, 24), np.uint8), [])
    report = inspect(config(good), quick=quick)
    assert "every labelled pixel is thing" in only(report, "one-class")
    alone = inspect(config(good, classes=["thing"], label_map={"1": "thing"}), quick=quick)
    assert "data.classes names thing alone" in only(alone, "one-class")


def test_a_batch_of_one_is_found_before_a_training(good: Path) -> None:
    raw = raw_config(good)
    model = {**TINY, "architecture": "deeplabv3plus", "pretrained": "timm"}
    report = inspect(
        parse_config({**raw, "model": model, "train": {"max_steps": 100, "batch_size": 1}}), quick=False
    )
    assert "train.batch_size=1 is too small" in only(report, "settings")


def tag(path: Path, orientation: int) -> None:
    with Image.open(path) as image:
        image.load()
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_warned_of_where_sizes_do_not_tell(good: Path, orientation: int, square: bool) -> None:
    if square:
        for path in (good / "images").iterdir():
            save_image(
                path,
                np.random.default_rng(int.from_bytes(path.stem.encode())).integers(
                    0, 256, (20, 20, 3), dtype=np.uint8
                ),
            )
        for path in (good / "masks").iterdir():
            save_mask(path, np.arange(400, dtype=np.uint8).reshape(20, 20) % 3, [])
    tag(good / "images/l1.png", orientation)
    report = inspect(config(good), quick=False)
    assert report.ok, report.problem_lines()
    unclear = orientation in (2, 3, 4) or (square and orientation > 1)
    assert set(counts(report)) == ({"orientation"} if unclear else set())
    if unclear:
        text = only(report, "orientation")
        assert f"labeled: 1 image(s) with EXIF orientation {orientation} whose mask has no such tag" in text
        assert "l1.png" in text
    # a tag on both turns both; tags that differ are named
    tag(good / "masks/l1.png", orientation)
    assert counts(inspect(config(good), quick=False)) == {}
    tag(good / "masks/l1.png", 3)
    if orientation in (1, 2, 4):
        assert "has orientation 3" in only(inspect(config(good), quick=False), "orientation")


def deep_images(root: Path, top: int, dtype: type = np.uint16) -> None:
    rng = np.random.default_rng(1)
    for path in (root / "images").iterdir():
        values = rng.integers(0, top + 1, (20, 24))
        values[0, :2] = 0, top
        Image.fromarray(values.astype(dtype)).save(path)


@pytest.mark.parametrize(
    ("top", "high"),
    [(65535, 65535), (40000, 65535), (32767, 32767), (16000, 16383), (3824, 4095), (200, 255)]
)  # fmt: skip
def test_the_range_of_deep_images_is_found_and_shown(good: Path, top: int, high: int) -> None:
    deep_images(good, top)
    report = inspect(config(good), quick=False)
    assert report.ok
    assert f"hold 0 to {top}; 0 to {high} become 0 to 255 (found in the data)" in report.facts["values"]
    assert f"the network sees 0 to {round(255 * top / high)}" in report.facts["values"]
    assert set(counts(report)) == (set() if high == 65535 else {"value-range"})
    settled = inspect(config(good, value_range=[0, high]), quick=False)
    assert counts(settled) == {}


def test_a_deep_image_among_many_is_not_passed_over(good: Path) -> None:
    paths = [good / f"images/x{i}.png" for i in range(80)]
    for number, path in enumerate(paths):
        save_image(path, np.full((20, 24, 3), number, np.uint8))
    deep_path = good / "images/x1.png"  # not among the 32 that are looked at for a range
    Image.fromarray(np.full((20, 24), 3000, np.uint16)).save(deep_path)
    (good / "unlabeled.txt").write_text("".join(f"images/{path.name}\n" for path in paths))
    report = inspect(config(good), quick=False)
    assert "hold 3000 to 3000; none was among those sampled" in only(report, "value-range")
    assert "data.value_range=[0,4095]" in report.problems["value-range"].cure


def test_deep_and_plain_images_together_are_said(good: Path) -> None:
    Image.fromarray(np.full((20, 24), 60000, np.uint16)).save(good / "images/u1.png")
    assert "1 of 20 images have more than 8 bits" in inspect(config(good), quick=False).facts["values"]


def test_an_unlucky_start_is_no_two_value_set(good: Path) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[0] = 255
    for number in range(11):
        save_mask(good / f"masks/l{number}.png", mask, [])
    assert counts(inspect(config(good), quick=True)) == {}


def test_empty_class_and_ignored_mask_are_warnings(good: Path) -> None:
    blank = np.full((20, 24), 255, np.uint8)
    save_mask(good / "masks/l6.png", blank, [])
    report = inspect(config(good, classes=["ground", "thing", "other", "never"]), quick=False)
    assert report.ok
    assert counts(report) == {"all-ignored": 1, "empty-class": 1}
    assert "never (id 3)" in only(report, "empty-class")
    assert "l6.png" in only(report, "all-ignored")


def test_overlap_by_path_and_by_content(good: Path) -> None:
    (good / "images/v2.png").write_bytes((good / "images/l1.png").read_bytes())
    (good / "images/u1.png").write_bytes((good / "images/v0.png").read_bytes())
    write_lists(good, [f"l{i}" for i in range(12)], ["u0", "u1", "l7"], ["v0", "v1", "v2", "l0"])
    report = inspect(config(good), quick=False)
    assert counts(report) == {"overlap": 4}
    assert not report.ok
    text = "\n".join(report.problems["overlap"].examples)
    images = good / "images"
    assert f"labeled and val: {images}/l0.png" in text
    assert f"labeled and val: {images}/l1.png, there as {images}/v2.png" in text
    assert f"unlabeled and val: {images}/u1.png, there as {images}/v0.png" in text
    assert f"labeled and unlabeled: {images}/l7.png" in text
    quick = inspect(config(good), quick=True)
    assert quick.ok
    assert counts(quick) == {"overlap": 2}


def test_repeated_images(good: Path) -> None:
    (good / "images/u1.png").write_bytes((good / "images/u3.png").read_bytes())
    (good / "unlabeled.txt").write_text("".join(f"images/u{i}.png\n" for i in (0, 0, 1, 2, 3)))
    report = inspect(config(good), quick=False)
    assert report.ok
    assert counts(report) == {"list": 1, "duplicate": 2}


def test_crop_larger_than_the_working_size(good: Path) -> None:
    raw = raw_config(good, resize={"mode": "fixed", "height": 40, "width": 48})
    assert counts(inspect(parse_config({**raw, "views": {"crop": [40, 48]}}), quick=True)) == {}
    report = inspect(parse_config({**raw, "views": {"crop": [41, 48]}}), quick=True)
    assert report.ok
    assert "working size of 48x40, the crop is 48x41" in only(report, "crop")


def test_a_small_crop_of_large_images(good: Path) -> None:
    raw = raw_config(good, resize={"mode": "fixed", "height": 120, "width": 160})
    assert counts(inspect(parse_config({**raw, "views": {"crop": [48, 50]}}), quick=True)) == {}
    report = inspect(parse_config({**raw, "views": {"crop": [48, 49]}}), quick=True)
    assert report.ok
    assert "the crop is 49x48, the working size of most images 160x120" in only(report, "small-crop")


def test_random_weights(good: Path) -> None:
    raw = raw_config(good)
    report = inspect(parse_config({**raw, "model": TINY}), quick=True)
    assert report.ok
    assert "model.pretrained=none" in only(report, "random-weights")
    later = {**raw, "model": TINY, "train": {"start_from": "runs/labels", "max_steps": 10}}
    assert counts(inspect(parse_config(later), quick=True)) == {}


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"classes": ["a", "a"]}, "settings", "more than once"),
        ({"label_map": {"0": "x"}}, "settings", "which is no class"),
        ({"val": "gone.txt"}, "missing", "data.val=gone.txt not found"),
    ],
)
def test_unusable_settings_are_findings(good: Path, data: dict[str, object], kind: str, message: str) -> None:
    report = inspect(config(good, **data), quick=True)
    assert not report.ok
    assert message in only(report, kind)


def test_missing_root_is_a_finding(tmp_path: Path) -> None:
    assert "is not a folder" in only(inspect(config(tmp_path / "gone"), quick=True), "settings")


def shared_data() -> Path:
    root = Path(os.environ.get("PROTOSEG_DATA", PROJECT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no development data at {root}; set PROTOSEG_DATA")
    return root


def test_camvid_and_nuclei_lists() -> None:
    root = shared_data()
    camvid = {
        "kind": "files", "root": str(root / "camvid"), "classes": "classes.txt",
        "labeled": "splits/46/seed0/labeled.txt", "unlabeled": "splits/46/seed0/unlabeled.txt",
        "val": "splits/val.txt",
    }  # fmt: skip
    usual = {"views": {"crop": [160, 224]}, "model": {"pretrained": "package"}}
    report = inspect(parse_config({"data": camvid, **usual}), quick=True)
    assert counts(report) == {}
    # as the defaults are, which are made for the embedded scenes
    assert set(counts(inspect(parse_config({"data": camvid}), quick=True))) == {
        "small-crop", "random-weights"
    }  # fmt: skip
    images = {name: item["images"] for name, item in report.facts["splits"].items()}
    assert images == {"labeled": 46, "unlabeled": 321, "val": 101}
    nuclei = {
        "kind": "files", "root": str(root / "nuclei"), "classes": ["background", "nucleus"],
        "labeled": "splits/labeled.txt", "unlabeled": "splits/unlabeled.txt", "val": "splits/val.txt",
    }  # fmt: skip
    assert set(counts(inspect(parse_config({"data": nuclei, **usual}), quick=True))) >= {"two-value"}
    mapped = {**nuclei, "label_map": {"0": 0, "255": 1}}
    assert inspect(parse_config({"data": mapped}), quick=True).ok


def test_plan_counts_batches(good: Path) -> None:
    raw = raw_config(good)
    train = {"epochs": 3, "batch_size": 2, "accumulate": 1}
    report = inspect(parse_config({**raw, "train": train}), quick=True, processes=1)
    # four unlabelled images, two in a batch
    assert report.facts["training"]["steps_per_epoch"] == 2
    assert report.facts["training"]["steps"].startswith("6 ")
    train["accumulate"] = 2
    report = inspect(parse_config({**raw, "train": train}), quick=True, processes=2)
    assert report.facts["training"]["effective_batch"].startswith("8 labelled and as many")
    assert report.facts["training"]["steps_per_epoch"] == 1


def test_memory_is_counted_from_the_network(good: Path) -> None:
    from protoseg.models.segmenter import build_segmenter

    found = config(good)
    memory = inspect(found, quick=False).facts["memory"]
    network = build_segmenter(ModelConfig(**TINY), found.prototypes, num_classes=3).network
    million = sum(p.numel() for p in network.parameters()) / 1e6
    assert memory["parameters"] == f"{million:.2f} M ({million:.2f} M trained)"
    half = parse_config({**raw_config(good), "train": {"max_steps": 1, "mixed_precision": "bf16"}})
    other = inspect(half, quick=False).facts["memory"]["activations"]
    full = int(memory["activations"].split()[1])
    assert abs(int(other.split()[1]) - full / 2) <= 1


def test_images_that_lie_on_the_device_are_counted(good: Path) -> None:
    raw = raw_config(good)
    memory = [
        inspect(parse_config({**raw, "data": raw["data"] | {"cache": cache}}), quick=False).facts["memory"]
        for cache in (True, "device")
    ]
    assert "images, on the device" not in memory[0]
    assert memory[1]["images, on the device"] == "0 MiB (data.cache=device)"
    sizes = {(480, 640): 1000, (500, 500): 8}
    found = parse_config({**raw, "data": raw["data"] | {"resize": {"mode": "short_side", "size": 240}}})
    assert image_bytes(found, sizes, 1) == 4 * (1000 * 240 * 320 + 8 * 240 * 240)


def test_embedded_data_is_checked_too(tmp_path: Path) -> None:
    found = parse_config({"data": {"synthetic": SCENES}, "model": TINY, "views": {"crop": [32, 40]}})
    report = inspect(found, quick=False)
    assert report.ok
    assert counts(report) == {}
    assert report.facts["splits"]["unlabeled"]["images"] == 5
    assert sum(r["labeled"] or 0 for r in report.facts["class_shares"].values()) == pytest.approx(1)


def test_long_lists_of_findings_are_cut_with_a_count() -> None:
    report = Report()
    for number in range(25):
        report.add("missing", f"file {number}")
    report.add("crop", "small", "warning")
    lines = report.problem_lines()
    assert lines[0] == "ERROR: list entries without their files (25)"
    assert lines[10] == "  file 9"
    assert lines[11] == "  ... and 15 more"
    assert lines[12].startswith("WARNING: ")
    assert len(report.to_json()["problems"][0]["examples"]) == 25


def test_command_on_broken_data(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good)
    (good / "images/l3.png").unlink()
    (good / "run.yaml").write_text(yaml.safe_dump(raw_config(good)))
    assert main(["--config", "run.yaml", "--json", "found.json", "data.val=labeled.txt"]) == 1
    output = capsys.readouterr().out
    assert "line 4: image images/l3.png not found" in output
    # the same broken line is in both lists now, and the other 11 images are in both
    assert "ERROR: list entries without their files (2)" in output
    assert "ERROR: images that are in two splits (11)" in output
    assert "... and 1 more" in output
    saved = json.loads((good / "found.json").read_text())
    assert saved["ok"] is False
    assert {p["kind"]: p["count"] for p in saved["problems"]} == {"missing": 2, "overlap": 11}
    with Image.open(good / "runs/t/check.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 800


def test_command_on_good_data_and_sheet_colors(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good)
    (good / "run.yaml").write_text(
        yaml.safe_dump(raw_config(good, palette=[[0, 0, 0], [250, 0, 0], [0, 250, 0]]))
    )
    assert main(["--config", "run.yaml", "--out", "deep/sheet.png"]) == 0
    output = capsys.readouterr().out
    assert "the data is fine" in output
    assert "contact sheet of 16 images" in output
    with Image.open("deep/sheet.png") as sheet:
        colors = {tuple(c) for c in np.asarray(sheet).reshape(-1, 3).tolist()}
    assert {(250, 0, 0), (0, 250, 0)} <= colors
    assert main(["--config", "run.yaml", "--quick"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "gone.yaml"], "config file gone.yaml not found"),
        (["--config", "run.yaml", "data.rot=x"], "unknown key"),
        (["--config", "run.yaml", "--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_command_user_errors(
    good: Path, args: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(good)
    (good / "run.yaml").write_text(yaml.safe_dump(raw_config(good)))
    assert main(args) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
