import csv
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_info, tiny_run, tiny_segmenter

from protoseg.checkpoint import save_checkpoint
from protoseg.config.training import EvalConfig
from protoseg.data.find import FoundImage
from protoseg.data.images import resize_image
from protoseg.input_rule import InputRule, ResizeConfig
from protoseg.method.pseudo_labels import fuse
from protoseg.predict.__main__ import main
from protoseg.predict.images import DEFAULT_HEAD, predict_image, soft_labels
from protoseg.predict.table import ResultTable
from protoseg.predict.write import to_grey

COLORS = [item.color for item in tiny_info(3).classes]
EXIF_ORIENTATION = 0x0112


def photo(height, width, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rule_with(resize, channels=3):
    return InputRule(
        channels=channels, mean=[0.5] * channels, std=[0.5] * channels, stride_multiple=32, resize=resize,
        crop=(32, 32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter(num_classes=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("size", [(33, 61), (1, 1), (64, 40)])
@pytest.mark.parametrize(
    "resize", [ResizeConfig(), ResizeConfig(mode="fixed", height=40, width=48)], ids=["own", "fixed"]
)
def test_labels_are_the_argmax_of_upsampled_logits(segmenter, size, resize):
    image = photo(*size)
    found = predict_image(segmenter, image, rule_with(resize))
    small = resize_image(image, resize)
    with torch.no_grad():
        output = segmenter(torch.from_numpy(small).permute(2, 0, 1)[None])
    linear = output.linear_logits
    if small.shape[:2] != size:
        linear = F.interpolate(linear, size=size, mode="bilinear", align_corners=False)
    assert np.array_equal(found.labels, linear.argmax(1)[0].numpy())
    assert found.labels.dtype == np.uint8
    np.testing.assert_allclose(found.confidence, linear.softmax(1).amax(1)[0], atol=1e-6)
    believed = np.take_along_axis(linear.softmax(1)[0].numpy(), found.labels[None].astype(np.int64), 0)[0]
    np.testing.assert_allclose(found.label_probability, believed, atol=1e-6)


def test_heads(segmenter):
    image = photo(40, 48)
    with torch.no_grad():
        output = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None])
    expected = {
        "linear": output.linear_logits.argmax(1),
        "prototype": output.prototype_logits.argmax(1),
        "fused": fuse(*output).argmax(1),
    }
    assert DEFAULT_HEAD == "linear"
    for head, labels in expected.items():
        found = predict_image(segmenter, image, rule_with(ResizeConfig()), head=head)
        assert np.array_equal(found.labels, labels[0].numpy()), head


def test_probabilities_at_the_working_size(segmenter):
    rule = rule_with(ResizeConfig(mode="long_side", size=32))
    image = photo(40, 48)
    for head in ("linear", "prototype", "fused"):
        probs = soft_labels(segmenter, image, rule, head=head)
        assert probs.shape == (3, 27, 32)
        np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)
        own = rule.model_copy(update={"resize": ResizeConfig()})
        said = predict_image(segmenter, image, own, head=head)
        whole = soft_labels(segmenter, image, own, head=head)
        np.testing.assert_array_equal(whole.argmax(0), said.labels)
        np.testing.assert_allclose(whole.max(0), said.confidence, atol=1e-5)


def test_sliding_uses_windows_of_the_training_crop(segmenter):
    image, rule = photo(40, 90), rule_with(ResizeConfig())
    sizes = []
    handle = segmenter.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    predict_image(segmenter, image, rule, config=EvalConfig(mode="sliding", window_stride=1.0))
    handle.remove()
    assert set(sizes) == {(32, 32)}
    assert len(sizes) == 2 * 3


def test_predict_without_prototypes():
    bare = tiny_segmenter(num_classes=3)
    bare.bank.active.fill_(False)
    rule = rule_with(ResizeConfig())
    found = predict_image(bare, photo(8, 8), rule)
    np.testing.assert_allclose(found.label_probability, found.confidence, atol=1e-6)
    with pytest.raises(ValueError, match="head 'fused' needs prototypes"):
        predict_image(bare, photo(8, 8), rule, head="fused")


@pytest.mark.parametrize("image", [photo(8, 8, channels=1), photo(8, 8, channels=4), np.zeros((8, 8, 3))])
def test_predict_refuses_other_images(segmenter, image):
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        predict_image(segmenter, image, rule_with(ResizeConfig()))


def test_grey_is_rounded_and_clipped():
    values = np.array([[0.0, 0.5, 1.0, 1.5, -0.1, np.nan]], np.float32)
    assert to_grey(values).tolist() == [[0, 128, 255, 255, 0, 0]]


def test_two_inputs_of_one_stem_get_distinct_names(tmp_path):
    paths = [Path(name) for name in ("x/a.jpg", "y/a.png", "a_2.jpg", "A.png", "b.jpg", "z/b.jpg")]
    images = [FoundImage(str(path), path, PurePath(path.name)) for path in paths]
    names = ResultTable(tmp_path).reserve(images)
    assert names == ["a", "a_3", "a_2", "A_4", "b", "b_2"]
    assert len({name.casefold() for name in names}) == len(paths)
    assert ResultTable(tmp_path).reserve(images[::-1]) == names[::-1], "an image keeps its name"
    deep = [FoundImage(p, Path(p), PurePath(p)) for p in ("v/e\u0301.jpg", "v/\u00e9.jpg", "w/a.jpg")]
    assert ResultTable(tmp_path).reserve(deep) == ["v/e\u0301", "v/\u00e9_2", "w/a"]


def table_of(out):
    with (out / "predictions.csv").open(newline="") as file:
        return {Path(row["input"]): row for row in csv.DictReader(file)}


def test_a_second_call_never_writes_over_another_inputs_result(trained, tmp_path, capsys):
    """Sequences number their frames alike."""
    for number, video in enumerate(("video1", "video2")):
        (tmp_path / "in" / video).mkdir(parents=True)
        for frame in ("00000", "00001"):
            Image.fromarray(photo(16, 16, seed=number)).save(tmp_path / "in" / video / f"{frame}.png")
    out = tmp_path / "out"

    def call(*inputs):
        before = {p: p.read_bytes() for p in (out / "masks").rglob("*.png")}
        assert main([str(trained), *map(str, inputs), "-o", str(out), "--device", "cpu", "--no-overlay"]) == 0
        assert all(p.read_bytes() == data for p, data in before.items())
        return sorted(p.relative_to(out / "masks").as_posix() for p in (out / "masks").rglob("*.png"))

    first = call(tmp_path / "in" / "video1")
    assert first == ["00000.png", "00001.png"]
    second = call(tmp_path / "in" / "video2")
    assert second == ["00000.png", "00000_2.png", "00001.png", "00001_2.png"]
    assert call(tmp_path / "in") == second, "an image keeps its name"
    for path, row in table_of(out).items():
        assert row["masks"] == f"masks/{row['name']}.png"
        assert (row["overlays"], row["head"], row["run"]) == ("", "linear", "tiny")
        assert ("_2" in row["name"]) == (path.parent.name == "video2")
    (tmp_path / "new").mkdir()
    out = tmp_path / "new"
    assert call(tmp_path / "in") == [f"video{v}/0000{n}.png" for v in (1, 2) for n in (0, 1)]
    capsys.readouterr()


def test_files_that_no_table_knows_are_left_alone(trained, tmp_path, capsys):
    Image.fromarray(photo(16, 16)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "a.png").write_bytes(b"another's")
    assert main([str(trained), str(tmp_path / "a.png"), "-o", str(out), "--device", "cpu"]) == 0
    assert (out / "masks" / "a.png").read_bytes() == b"another's"
    assert (out / "masks" / "a_2.png").exists()
    (out / "predictions.csv").write_text("image,score\na,1\n")
    assert main([str(trained), str(tmp_path / "a.png"), "-o", str(out), "--device", "cpu"]) == 1
    assert "is not the table that predict writes" in capsys.readouterr().err


def test_an_interrupted_call_leaves_names_and_finished_rows(trained, tmp_path, monkeypatch, capsys):
    for name in "ab":
        Image.fromarray(photo(16, 16)).save(tmp_path / f"{name}.png")
    calls = []

    def stop_at_the_second(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict_image(*arguments, **keywords)

    monkeypatch.setattr("protoseg.predict.images.predict_image", stop_at_the_second)
    assert main([str(trained), str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 130
    rows = {path.name: row for path, row in table_of(tmp_path / "out").items()}
    assert rows["a.png"]["masks"] == "masks/a.png"
    assert (rows["b.png"]["name"], rows["b.png"]["masks"]) == ("b", "")


def test_masks_beside_images_and_unknown_kinds_are_named(trained, tmp_path, capsys):
    for name in ("a.png", "a_mask.png", "b.jfif"):
        Image.fromarray(photo(16, 16)).save(tmp_path / name, format="PNG")
    (tmp_path / "c.dcm").touch()
    assert main([str(trained), str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    found = capsys.readouterr()
    assert "2 of 2 images" in found.out
    assert "1 .dcm, as c.dcm" in found.err
    assert "1 mask(s) beside their images (ending _mask), as a_mask.png" in found.err


@pytest.fixture
def inputs(tmp_path):
    """Images of several kinds, one that is rotated by EXIF, and one that is cut short."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(photo(30, 44)).save(folder / "a.png")
    Image.fromarray(photo(20, 21, channels=1)).save(folder / "more" / "a.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(photo(24, 40)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(photo(64, 64)).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_command(trained, inputs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(trained), str(inputs), "-o", str(out), "--device", "cpu"]) == 1
    found = capsys.readouterr()
    assert "cut.jpg cannot be decoded" in found.err
    assert "1 file(s) could not be read" in found.err
    assert "3 of 4 images" in found.out
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    stems = ("a", "more/a", "turned")
    suffixes = {"masks": "png", "overlays": "jpg", "confidence": "png", "disagreement": "png"}
    pictures = [f"{folder}/{stem}.{end}" for folder, end in suffixes.items() for stem in stems]
    assert written == sorted([*pictures, "predictions.csv"])
    for folder in suffixes:
        for stem, size in zip(stems, ((44, 30), (21, 20), (24, 40)), strict=True):
            (file,) = (out / folder).glob(f"{stem}.*")
            with Image.open(file) as picture:
                if folder == "overlays":  # the legend is below
                    assert picture.width >= size[0]
                    assert picture.height > size[1]
                else:
                    assert picture.size == size, file
    with Image.open(out / "masks" / "a.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == [value for color in COLORS for value in color]


def test_several_at_a_time_write_what_one_does(trained, inputs, tmp_path, capsys):
    threads = torch.get_num_threads()
    written = []
    for workers in ("1", "3"):
        out = tmp_path / workers
        command = [str(trained), str(inputs), "-o", str(out), "--device", "cpu", "--soft"]
        assert main([*command, "--workers", workers]) == 1  # one of them is cut short
        assert "3 of 4 images" in capsys.readouterr().out
        written.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert written[0] == written[1]
    assert torch.get_num_threads() == threads
    assert main([*command, "--workers", "0"]) == 1
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err


def test_written_maps_hold_the_prediction(trained, segmenter, inputs, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [trained, inputs / "a.png", "-o", out, "--head", "fused", "--no-overlay", "--device", "cpu"]
    assert main([str(a) for a in arguments]) == 0
    image = np.array(Image.open(inputs / "a.png"))
    expected = predict_image(segmenter, image, tiny_info(3).input, head="fused")
    assert np.array_equal(np.array(Image.open(out / "masks" / "a.png")), expected.labels)
    assert np.array_equal(np.array(Image.open(out / "confidence" / "a.png")), to_grey(expected.confidence))
    disagreement = np.array(Image.open(out / "disagreement" / "a.png"))
    assert np.array_equal(disagreement, to_grey(1 - expected.label_probability))
    assert not (out / "overlays").exists()
    assert "1 of 1 images" in capsys.readouterr().out


def test_overlays_without_a_legend_have_the_images_size(trained, inputs, tmp_path):
    arguments = [trained, inputs / "a.png", "-o", tmp_path, "--no-legend", "--device", "cpu"]
    assert main([str(a) for a in arguments]) == 0
    with Image.open(tmp_path / "overlays" / "a.jpg") as picture:
        assert picture.size == (44, 30)


def test_a_second_call_does_not_read_its_own_results(trained, tmp_path, capsys):
    Image.fromarray(photo(16, 16)).save(tmp_path / "a.png")
    for _ in range(2):
        assert main([str(trained), str(tmp_path), "-o", str(tmp_path), "--device", "cpu"]) == 0
    assert "1 of 1 images" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "masks").iterdir()] == ["a.png"]


def test_a_checkpoint_without_prototypes(tmp_path, capsys):
    bare = tiny_segmenter(num_classes=3)
    bare.bank.active.fill_(False)
    save_checkpoint(tmp_path / "checkpoint", bare, tiny_info(3))
    Image.fromarray(photo(16, 16)).save(tmp_path / "a.png")
    arguments = [str(tmp_path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 0
    confidence, disagreement = (
        np.array(Image.open(tmp_path / "out" / part / "a.png")).astype(int)
        for part in ("confidence", "disagreement")
    )
    assert np.abs(confidence + disagreement - 255).max() <= 1
    assert main([*arguments, "--head", "prototype"]) == 1
    assert "use --head linear" in capsys.readouterr().err


def test_command_explains_what_is_wrong(trained, tmp_path, capsys):
    image = tmp_path / "a.png"
    Image.fromarray(photo(8, 8)).save(image)
    blocked = tmp_path / "file"
    blocked.touch()
    for arguments, message in (
        (["no-such-run", image, "-o", tmp_path / "out"], "no checkpoint at"),
        ([trained, tmp_path / "gone.png", "-o", tmp_path / "out"], "gone.png is neither"),
        ([trained, image, "-o", tmp_path / "out", "--student"], "student.safetensors does not exist"),
        ([trained, image, "-o", blocked], "file"),
    ):
        assert main([*map(str, arguments), "--device", "cpu"]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
