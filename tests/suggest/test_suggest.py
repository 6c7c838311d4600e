import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import PROJECT_ROOT, photo, quiet_environment, tiny_info, tiny_run, tiny_segmenter

from protoseg.checkpoint import save_checkpoint
from protoseg.config.data import DataConfig
from protoseg.method.pseudo_labels import fuse
from protoseg.suggest import __main__ as command
from protoseg.suggest.__main__ import main
from protoseg.suggest.score_images import Suggester


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter(num_classes=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("trained"))


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


def test_command(trained, pool, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (pool, "-n", 20, "-o", out, "--min-distance", 1e-5)
    call(trained, *arguments)
    found = capsys.readouterr()
    assert "cut.png cannot be decoded" in found.err
    assert "1 could not be read" in found.out
    assert "6 of 7 images in" in found.out
    assert "accelerate launch --quiet -m protoseg.train" in found.out
    assert sorted(p.name for p in out.iterdir()) == ["sheet.png", "suggested.json", "suggested.txt"]
    names = (out / "suggested.txt").read_text().splitlines()
    assert len(names) == 6
    twins = {(pool / "3.png").as_posix(), (pool / "more" / "copy of 3.bmp").as_posix()}
    assert len(twins & set(names)) == 1, "of two copies one is chosen"
    record = json.loads((out / "suggested.json").read_text())
    assert [row["image"] for row in record["suggested"]] == names
    assert [row["rank"] for row in record["suggested"]] == [1, 2, 3, 4, 5, 6]
    assert record["suggested"][0]["nearest"] is None
    assert record["choice"] == "prototypes"
    assert all(row["nearest"]["image"] in names[:i] for i, row in enumerate(record["suggested"]) if i)
    assert record["counts"] == {
        "given": 8, "labeled_or_excluded": 0, "validation": 0, "skipped": 1, "scored": 7,
        "near_duplicates": 1, "suggested": 6, "labeled_compared": 0,
    }  # fmt: skip
    assert "cut.png" in record["skipped"][0]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    call(trained, *arguments)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before, "the same input gives the same bytes"


def test_a_score_that_was_named_decides(trained, pool, tmp_path, capsys):
    call(trained, pool, "-n", 3, "-o", tmp_path / "out", "--score", "entropy", "--min-distance", 1e-5)
    record = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert (record["choice"], record["score"]) == ("score", "entropy")
    assert record["suggested"][0]["score"] == max(row["score"] for row in record["suggested"])
    assert record["suggested"][0]["cluster_size"] is None
    assert "not this score" in capsys.readouterr().out


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
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "3.png").touch()
    (tmp_path / "labeled.txt").write_text("pool/3.png\tmasks/3.png\n")
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


@pytest.mark.parametrize("named", [False, True])
def test_validation_images_are_never_suggested(segmenter, pool, tmp_path, capsys, named):
    (tmp_path / "masks").mkdir()
    for number in (0, 3, 5):
        (tmp_path / "masks" / f"{number}.png").touch()
    (tmp_path / "labeled.txt").write_text("pool/3.png masks/3.png\n")
    (tmp_path / "val.txt").write_text("pool/0.png masks/0.png\npool/5.png masks/5.png\n")
    data = DataConfig(
        kind="files", root=str(tmp_path), labeled="labeled.txt", val="val.txt", classes=["a", "b"]
    )
    save_checkpoint(tmp_path / "checkpoint", segmenter, tiny_info(3).model_copy(update={"data": data}))
    # the same files under other names: a list of all images, and a link to their folder
    (tmp_path / "all.txt").write_text("".join(f"pool/{number}.png\n" for number in range(6)))
    (tmp_path / "linked").symlink_to(pool, target_is_directory=True)
    extra = ["--labeled", tmp_path / "labeled.txt"] if named else []
    for given in (tmp_path / "all.txt", tmp_path / "linked"):
        call(tmp_path, given, "-o", tmp_path / "out", "--min-distance", 1e-5, *extra)
        record = json.loads((tmp_path / "out" / "suggested.json").read_text())
        assert record["counts"]["validation"] == 2
        chosen = {Path(row["image"]).name for row in record["suggested"]}
        assert chosen == {"1.png", "2.png", "4.png"}
    assert "2 for validation" in capsys.readouterr().out
    call(tmp_path, pool / "0.png", "-o", tmp_path / "out", code=1)
    assert "or for validation; give other" in capsys.readouterr().err
    (tmp_path / "val.txt").unlink()
    call(tmp_path, pool / "0.png", "-o", tmp_path / "out")
    assert "name them with --exclude" in capsys.readouterr().err


def test_a_checkpoint_without_prototypes(pool, tmp_path, capsys):
    bare = tiny_segmenter(num_classes=3)
    bare.bank.active.fill_(False)
    save_checkpoint(tmp_path / "checkpoint", bare, tiny_info(3))
    call(tmp_path, pool, "-o", tmp_path / "out", "--min-distance", 1e-5, "-n", 3)
    assert "compared by their mean feature" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "suggested.json").read_text())
    assert record["embedding"] == "mean feature"
    assert record["choice"] == "clusters"
    sizes = [row["cluster_size"] for row in record["suggested"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 7
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

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(command, "suggestion_sheet", fail)
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
    assert "interrupted" in capsys.readouterr().err
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
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return path


def test_first_images_without_a_checkpoint(pool, weights, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "done.txt").write_text("pool/1.png\n")
    encoder = ["--encoder", "test_resnet", "--weights", str(weights), "--device", "cpu"]
    arguments = [str(pool), *encoder, "-n", "4", "-o", str(out), "--exclude", str(tmp_path / "done.txt")]
    assert main(arguments) == 0
    found = capsys.readouterr()
    assert "cut.png cannot be decoded" in found.err
    assert "4 of 6 images in" in found.out
    assert "protoseg init" in found.out
    names = (out / "suggested.txt").read_text().splitlines()
    record = json.loads((out / "suggested.json").read_text())
    assert [row["image"] for row in record["suggested"]] == names
    assert len(set(names)) == 4
    assert sum(row["cluster_size"] for row in record["suggested"]) == 6
    assert not {"1.png", "cut.png"} & {Path(name).name for name in names}
    assert len({"3.png", "copy of 3.bmp"} & {Path(name).name for name in names}) <= 1
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"sheet.png", "suggested.json", "suggested.txt"}
    assert main(arguments) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert main([str(pool / "cut.png"), *encoder, "-o", str(tmp_path / "none")]) == 1
    assert "none of the 1 images could be read" in capsys.readouterr().err
    assert main([str(pool), "--encoder", "vit_tiny_patch16_224", "-o", str(out)]) == 1
    assert "convolutional" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--score", "entropy"], ["--head", "linear"], ["--format", "coco"]])
def test_what_needs_a_network_is_refused_without_one(extra, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["photos", "--encoder", "tf_efficientnet_lite0", *extra])
    assert f"{extra[0]} needs a trained network" in capsys.readouterr().err


def test_images_stand_on_both_sides_of_options():
    found = command.parse_arguments(["RUN", "-n", "3", "a.png", "-o", "out", "b.png"])
    assert (found.checkpoint, found.inputs) == ("RUN", [Path("a.png"), Path("b.png")])
    found = command.parse_arguments(["a.png", "--encoder", "resnet18", "b.png"])
    assert found.inputs == [Path("a.png"), Path("b.png")]


def test_images_are_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["runs/first"])
    assert "required: IMAGES" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["runs/first", "photos", "--weights", "timm"])
    assert "--weights needs --encoder" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["-n", "0"], ["--min-distance", "1.5"], ["--score", "luck"]])
def test_arguments_are_checked(trained, extra, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(trained), "x", *extra])
    assert "error: " in capsys.readouterr().err
