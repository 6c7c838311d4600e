import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PROJECT_ROOT, quiet_environment, tiny_info, tiny_segmenter

from protoseg.checkpoint import save_checkpoint
from protoseg.config.sections import DataConfig
from protoseg.errors import DataError
from protoseg.inference import HeadLogits, inference
from protoseg.method.pseudo_labels import fuse
from protoseg.suggest.__main__ import main
from protoseg.suggest.candidates import collect, read_list
from protoseg.suggest.embedding import look, mean_feature, prototype_shares
from protoseg.suggest.k_center import distance_to, pick_diverse
from protoseg.suggest.score_images import Suggester
from protoseg.suggest.sheet import draw_sheet, make_tile
from protoseg.suggest.uncertainty import SCORES, suspicion


def photo(seed, height=40, width=48):
    """Coarse coloured patches: pictures that differ in more than noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


def directions(*degrees):
    angle = np.deg2rad(np.array(degrees, np.float32))
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


NONE = np.zeros((0, 2), np.float32)


# ----------------------------------------------------------------------------------------- suspicion


def one_pixel(linear, prototype=None):
    def column(values):
        return torch.tensor(values).log().view(1, -1, 1, 1)

    return HeadLogits(column(linear), None if prototype is None else column(prototype))


def test_scores_by_hand():
    logits = one_pixel([0.7, 0.2, 0.1], [0.1, 0.8, 0.1])
    found = {name: float(suspicion(logits, name, "fused", 0.1)) for name in SCORES}
    # fused 0.4, 0.5, 0.1 gives class 1, in which the linear head believes with 0.2
    entropy = -sum(p * np.log(p) for p in (0.4, 0.5, 0.1)) / np.log(3)
    assert found == pytest.approx(
        {"linear": 0.8, "confidence": 0.5, "entropy": entropy, "margin": 0.9, "disagreement": 0.6,
         "distance": (1 - 0.1 * np.log(0.8)) / 2},
        abs=1e-6,
    )  # fmt: skip
    assert float(suspicion(logits, "linear", "linear", 0.1)) == pytest.approx(0.3)
    assert float(suspicion(logits, "confidence", "prototype", 0.1)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("head", ["linear", "prototype", "fused"])
def test_scores_stay_in_range(name, head):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 5, 6)
    # the last class has no prototypes
    prototype = 10 * (2 * torch.rand(shape, generator=generator) - 1)
    prototype[:, 3] -= 40
    logits = HeadLogits(30 * torch.randn(shape, generator=generator), prototype)
    found = suspicion(logits, name, head, 0.1)
    assert found.shape == (2, 5, 6)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert found.std() > 0


def test_without_prototypes_only_some_scores_exist():
    logits = one_pixel([0.7, 0.3])
    assert float(suspicion(logits, "linear", "linear", 0.1)) == pytest.approx(0.3)
    for name in ("disagreement", "distance"):
        with pytest.raises(ValueError, match="use score 'linear'"):
            suspicion(logits, name, "linear", 0.1)
    with pytest.raises(ValueError, match="use head 'linear'"):
        suspicion(logits, "entropy", "fused", 0.1)


# ----------------------------------------------------------------------------------------- diversity


def test_distance_by_hand():
    found = distance_to(directions(0, 60, 90, 180), directions(0)[0])
    np.testing.assert_allclose(found, [0, np.sqrt(0.5), 1, 1], atol=1e-3)


def test_highest_score_first_then_score_times_distance():
    scores = np.array([0.5, 0.9, 0.85, 0.3], np.float32)
    picks, repeats = pick_diverse(scores, directions(90, 0, 10, 45), NONE, 3, 0.0)
    # from 0 degrees: 0.5 * 1, 0.85 * 0.12, 0.3 * 0.54; then 0.85 * 0.12 (to 0) against 0.3 * 0.54
    assert [pick.index for pick in picks] == [1, 0, 3]
    assert picks[0].nearest is None
    assert picks[0].distance is None
    assert picks[1].nearest == 1
    assert picks[1].distance == pytest.approx(1)
    assert repeats == 0


def test_duplicates_are_never_both_chosen():
    embeddings = directions(0, 0, 40, 40.5, 90, 90)
    scores = np.array([0.9, 0.95, 0.5, 0.6, 0.8, 0.8], np.float32)
    picks, repeats = pick_diverse(scores, embeddings, NONE, 6, 0.05)
    assert [pick.index for pick in picks] == [1, 4, 3]
    assert repeats == 3


def test_labelled_images_push_suggestions_away():
    embeddings, scores = directions(0, 45, 90), np.array([0.9, 0.5, 0.6], np.float32)
    picks, repeats = pick_diverse(scores, embeddings, directions(1, 180), 2, 0.05)
    assert [(pick.index, pick.nearest) for pick in picks] == [(2, 3), (1, 3)]
    assert repeats == 1, "the first is a near duplicate of a labelled one, whatever its score"


def test_equal_images_are_taken_in_order():
    picks, _ = pick_diverse(np.ones(4, np.float32), directions(0, 90, 0, 90), NONE, 4, 0.0)
    assert [pick.index for pick in picks] == [0, 1, 2, 3]


# ----------------------------------------------------------------------------------------- embedding


def test_prototype_shares_by_hand():
    cosine = torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]], [[9.0, 9.0]]])[:, None]
    found = prototype_shares(cosine, torch.tensor([True, True, False]), temperature=0.5)
    first = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found, np.sqrt([(first + 0.5) / 2, (1 - first + 0.5) / 2, 0]), atol=1e-6)
    assert found @ found == pytest.approx(1)


def test_mean_feature_by_hand():
    features = torch.tensor([[[2.0, 0.0]], [[0.0, 5.0]]])
    np.testing.assert_allclose(mean_feature(features), [np.sqrt(0.5)] * 2, atol=1e-6)


def test_one_pass_gives_what_the_segmenter_gives():
    segmenter = tiny_segmenter(num_classes=3)
    image = torch.from_numpy(photo(0)).permute(2, 0, 1)[None]
    with inference(segmenter):
        found, expected = look(segmenter, image), segmenter(image)
        padded = look(segmenter, torch.nn.functional.pad(image, (0, 16, 0, 24)))
    torch.testing.assert_close(found.logits.linear, expected.linear_logits)
    torch.testing.assert_close(found.logits.prototype, expected.prototype_logits)
    assert found.embedding.shape == (3 * 2,)
    assert not np.allclose(found.embedding, padded.embedding), (
        "the border that an image is padded by is no image"
    )
    segmenter.bank.active.fill_(False)
    with inference(segmenter):
        bare = look(segmenter, image)
    assert bare.logits.prototype is None
    assert bare.embedding.shape == (segmenter.network.feature_dim,)
    assert np.linalg.norm(bare.embedding) == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------------------------------- candidates


@pytest.fixture
def listed(tmp_path):
    for name in ("a.png", "b.png", "c d.png"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(photo(1)).save(tmp_path / "images" / name)
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "pool.txt"
    path.write_text("images/a.png masks/a.png\r\nimages/gone.png\n\nimages/c d.png")
    return path


def test_lists_are_read_below_the_first_root_that_fits(listed, tmp_path):
    found, problems = read_list(listed, [listed.parent, tmp_path], None)
    assert [item.name for item in found] == ["images/a.png", "images/c d.png"]
    assert [item.path for item in found] == [tmp_path / "images/a.png", tmp_path / "images/c d.png"]
    assert len(problems) == 1
    assert "line 2" in problems[0]
    assert "images/gone.png not found" in problems[0]
    with pytest.raises(DataError, match=r"name the folder .* with --root"):
        read_list(listed, [listed.parent], None)


def test_the_training_root_is_tried_last(listed, tmp_path):
    data = DataConfig(kind="files", root=str(tmp_path), labeled="x", val="x", classes=["a", "b"])
    found, _ = collect([listed], out=tmp_path / "out", root=None, data=data)
    assert [item.name for item in found] == ["images/a.png", "images/c d.png"]
    with pytest.raises(DataError, match="--root"):
        collect([listed], out=tmp_path / "out", root=tmp_path / "lists", data=data)


def test_each_file_counts_once_under_its_first_name(listed, tmp_path):
    found, _ = collect(
        [tmp_path / "images" / "b.png", listed, tmp_path / "images"],
        out=tmp_path,
        root=tmp_path,
        data=DataConfig(),
    )
    folder = (tmp_path / "images").as_posix()
    assert [item.name for item in found] == [f"{folder}/b.png", "images/a.png", "images/c d.png"]


def test_what_is_no_list_is_explained(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("x.bin", "neither an image nor a list"), ("empty.txt", "is empty")):
        with pytest.raises(DataError, match=message):
            read_list(tmp_path / name, [tmp_path], None)


# ------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter(num_classes=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, segmenter):
    folder = tmp_path_factory.mktemp("trained")
    save_checkpoint(folder / "checkpoint", segmenter, tiny_info(3))
    return folder


@pytest.fixture
def pool(tmp_path):
    """Six pictures, a copy of one of them in another format, and one that is cut short."""
    folder = tmp_path / "pool"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(photo(number)).save(folder / f"{number}.png")
    Image.fromarray(photo(3)).save(folder / "more" / "copy of 3.bmp")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def call(trained, *arguments, code=0):
    assert main([str(trained), *map(str, arguments), "--device", "cpu"]) == code


def test_command(trained, pool, tmp_path, run_module):
    out = tmp_path / "out"
    arguments = (
        "protoseg.suggest",
        trained,
        pool,
        "-n",
        20,
        "-o",
        out,
        "--min-distance",
        1e-5,
        "--device",
        "cpu",
    )
    finished = run_module(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert "cut.png cannot be decoded" in finished.stderr
    assert "1 could not be read" in finished.stdout
    assert "6 of 7 images in" in finished.stdout
    assert "accelerate launch -m protoseg.train" in finished.stdout
    assert sorted(p.name for p in out.iterdir()) == ["sheet.png", "suggested.json", "suggested.txt"]
    names = (out / "suggested.txt").read_text().splitlines()
    assert len(names) == 6
    twins = {(pool / "3.png").as_posix(), (pool / "more" / "copy of 3.bmp").as_posix()}
    assert len(twins & set(names)) == 1, "of two copies one is chosen"
    record = json.loads((out / "suggested.json").read_text())
    assert [row["image"] for row in record["suggested"]] == names
    assert [row["rank"] for row in record["suggested"]] == [1, 2, 3, 4, 5, 6]
    assert record["suggested"][0]["nearest"] is None
    assert record["suggested"][0]["score"] == max(row["score"] for row in record["suggested"])
    assert all(row["nearest"]["image"] in names[:i] for i, row in enumerate(record["suggested"]) if i)
    assert record["counts"] == {
        "given": 8, "labeled_or_excluded": 0, "skipped": 1, "scored": 7, "near_duplicates": 1, "suggested": 6,
        "labeled_compared": 0,
    }  # fmt: skip
    assert "cut.png" in record["skipped"][0]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main([str(argument) for argument in arguments[1:]]) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before, "the same input gives the same bytes"


def test_score_is_the_mean_suspicion(trained, segmenter, pool, tmp_path):
    call(trained, pool / "0.png", "-o", tmp_path / "out", "--score", "linear", "--head", "fused")
    (row,) = json.loads((tmp_path / "out" / "suggested.json").read_text())["suggested"]
    with torch.no_grad():
        linear, prototype = segmenter(torch.from_numpy(photo(0)).permute(2, 0, 1)[None])
    label = fuse(linear, prototype).argmax(1, keepdim=True)
    doubt = 1 - linear.softmax(1).gather(1, label)[:, 0]
    assert row["score"] == pytest.approx(float(doubt.mean()), abs=1e-4)
    parts = {f"class{c}": float(doubt[label[:, 0] == c].sum() / doubt.sum()) for c in range(3)}
    assert row["doubtful_classes"] == pytest.approx({k: v for k, v in parts.items() if v >= 0.05}, abs=1e-4)
    assert list(row["doubtful_classes"].values()) == sorted(row["doubtful_classes"].values(), reverse=True)


def test_labelled_and_excluded_images_are_not_suggested(trained, pool, tmp_path, capsys):
    (tmp_path / "done.txt").write_text("pool/3.png masks/3.png\npool/1.png\n")
    (tmp_path / "not.txt").write_text("pool/2.png\n")
    (pool / "cut.png").unlink()
    arguments = (pool, "-o", tmp_path / "out", "--min-distance", 1e-5)
    call(trained, *arguments, "--labeled", tmp_path / "done.txt", "--exclude", tmp_path / "not.txt")
    record = json.loads((tmp_path / "out" / "suggested.json").read_text())
    names = [Path(row["image"]).name for row in record["suggested"]]
    assert sorted(names) == ["0.png", "4.png", "5.png"], (
        "3 and 1 are labelled, 2 is excluded, the copy is of 3"
    )
    assert record["counts"]["near_duplicates"] == 1
    assert record["counts"]["labeled_compared"] == 2
    first = record["suggested"][0]["nearest"]
    assert first["labeled"]
    assert first["image"] in ("pool/3.png", "pool/1.png")
    assert "3 are labelled or excluded" in capsys.readouterr().out


def test_labels_of_the_training_are_known_without_being_named(segmenter, pool, tmp_path, capsys):
    (tmp_path / "labeled.txt").write_text("pool/3.png\tpool/3.png\n")
    data = DataConfig(
        kind="files", root=str(tmp_path), labeled="labeled.txt", val="x", classes=["a", "b", "c"]
    )
    save_checkpoint(tmp_path / "checkpoint", segmenter, tiny_info(3).model_copy(update={"data": data}))
    call(tmp_path, pool, "-o", tmp_path / "out", "--min-distance", 1e-5)
    record = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert record["counts"]["labeled_compared"] == 1
    assert not {"3.png", "copy of 3.bmp"} & {Path(row["image"]).name for row in record["suggested"]}
    (tmp_path / "labeled.txt").unlink()
    call(tmp_path, pool, "-o", tmp_path / "out")
    assert "name them with --labeled" in capsys.readouterr().err


def test_a_checkpoint_without_prototypes(pool, tmp_path, capsys):
    bare = tiny_segmenter(num_classes=3)
    bare.bank.active.fill_(False)
    save_checkpoint(tmp_path / "checkpoint", bare, tiny_info(3))
    call(tmp_path, pool, "-o", tmp_path / "out", "--min-distance", 1e-5, "-n", 3)
    assert "compared by their mean feature" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert record["embedding"] == "mean feature"
    assert record["head"] == "linear"
    assert len(record["suggested"]) == 3
    for extra, message in (
        (["--score", "distance"], "use --score linear"),
        (["--head", "fused"], "use --head linear"),
    ):
        call(tmp_path, pool, "-o", tmp_path / "out", *extra, code=1)
        assert message in capsys.readouterr().err


def test_nothing_readable_and_nothing_left(trained, pool, tmp_path, capsys):
    out = tmp_path / "out"
    call(trained, pool / "cut.png", "-o", out, code=1)
    assert "none of the 1 images could be read" in capsys.readouterr().err
    (tmp_path / "all.txt").write_text("pool/1.png\n")
    call(trained, pool / "1.png", "-o", out, "--exclude", tmp_path / "all.txt", code=1)
    assert "all 1 images are labelled or excluded" in capsys.readouterr().err
    call(trained, tmp_path / "gone", "-o", out, code=1)
    assert "gone is neither a file nor a folder" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "one.txt").write_text("pool/3.png\n")
    call(trained, pool / "more", "-o", out, "--labeled", tmp_path / "one.txt", "--min-distance", 1e-5)
    assert "nothing to suggest: all 1 images are near duplicates" in capsys.readouterr().out
    assert not out.exists()


def test_a_broken_line_is_skipped_and_counted(trained, pool, tmp_path, capsys):
    (tmp_path / "pool.txt").write_text("pool/1.png\npool/gone.png\npool/2.png\n")
    call(trained, tmp_path / "pool.txt", "-o", tmp_path / "out", "--min-distance", 0)
    captured = capsys.readouterr()
    assert "pool.txt, line 2" in captured.err
    assert "1 could not be read" in captured.out
    assert sorted((tmp_path / "out" / "suggested.txt").read_text().split()) == ["pool/1.png", "pool/2.png"]


def test_results_are_not_candidates_and_survive_a_failure(trained, pool, tmp_path, monkeypatch, capsys):
    (pool / "cut.png").unlink()
    call(trained, pool, "-o", pool, "--min-distance", 0)
    before = {p.name: p.read_bytes() for p in pool.glob("s*")}
    assert set(before) == {"sheet.png", "suggested.json", "suggested.txt"}
    monkeypatch.setattr(
        "protoseg.suggest.draw_sheet", lambda *_: (_ for _ in ()).throw(OSError("disk is full"))
    )
    call(trained, pool, "-o", pool, "--score", "entropy", "--min-distance", 0, code=1)
    assert "disk is full" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in pool.glob("s*")} == before
    assert not list(pool.glob(".suggest-*"))
    assert json.loads(before["suggested.json"])["counts"]["given"] == 7
    monkeypatch.undo()
    call(trained, pool, "-o", pool, "--min-distance", 0)
    counts = json.loads((pool / "suggested.json").read_text())["counts"]
    assert (counts["given"], counts["scored"]) == (7, 7)


def test_an_interrupt_leaves_nothing(trained, pool, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Suggester, "look", interrupted)
    call(trained, pool, "-o", tmp_path / "out", code=130)
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_control_c_of_the_real_process(trained, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        Image.fromarray(photo(number % 7, 160, 160)).save(folder / f"{number}.bmp")
    command = [
        sys.executable,
        "-m",
        "protoseg.suggest",
        trained,
        folder,
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        list(map(str, command)), cwd=PROJECT_ROOT, env=quiet_environment(), text=True, stderr=subprocess.PIPE,
        # a job in the background of a shell inherits that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    seen = process.stderr.read(6)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, seen + rest
    assert "nothing was written" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [["-n", "0"], ["--min-distance", "1.5"], ["--score", "luck"]])
def test_arguments_are_checked(trained, extra, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(trained), "x", *extra])
    assert "error: " in capsys.readouterr().err


def test_sheet_holds_every_tile_in_place():
    classes = tiny_info(3).classes
    tiles = [
        make_tile("a" * 300, "note", np.full((h, w, 3), 9, np.uint8), np.full((h, w, 3), 99, np.uint8),
                  np.full((h, w), value, np.float32))
        for h, w, value in ((50, 80, 0.0), (300, 20, 1.0), (10, 10, 0.5))
    ]  # fmt: skip
    sheet = np.array(draw_sheet("headline", tiles, classes))
    one = np.array(draw_sheet("headline", tiles[:1], classes))
    assert one.shape[1] < sheet.shape[1]
    for value in (9, 99):
        assert (sheet == value).all(2).any()
    assert (sheet == (13, 8, 40)).all(2).any(), "suspicion 0 is dark"
    assert (sheet == (252, 236, 150)).all(2).any(), "suspicion 1 is bright"
    assert tiles[1].pictures[0].height == 330, "a tall image does not make a tall sheet"
