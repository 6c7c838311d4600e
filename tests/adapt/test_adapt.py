import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import PROJECT_ROOT, photo, quiet_environment, short_quickstart, tiny_info, tiny_segmenter

import protoseg
from protoseg.adapt import change
from protoseg.adapt.__main__ import main
from protoseg.checkpoint import load_checkpoint, read_info, save_checkpoint
from protoseg.config.data import DataConfig
from protoseg.evaluate.__main__ import main as evaluate
from protoseg.explain.atlas import read_atlas
from protoseg.manifest import ClassInfo
from protoseg.start_from import start_from_checkpoint

NAMES = ["ground", "sky", "water"]


def draw(place, count=3, first=0):
    """Pictures with a violet box, masks of the box (0 and 255), and masks of ids 0 to 3."""
    for part in ("images", "boxes", "ids"):
        (place / part).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        image = photo(number, 64, 64)
        ids = np.repeat(np.arange(64)[:, None] // 22, 64, 1).astype(np.uint8)
        image[8:40, 10:44], ids[8:40, 10:44] = (160, 0, 250), 3
        Image.fromarray(image).save(place / "images" / f"{number}.png")
        Image.fromarray(ids).save(place / "ids" / f"{number}.png")
        Image.fromarray(np.where(ids == 3, 255, 0).astype(np.uint8)).save(place / "boxes" / f"{number}.png")
        lines.append(f"images/{number}.png ids/{number}.png\n")
    (place / "list.txt").write_text("".join(lines))
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three classes whose lists and masks are files."""
    folder = tmp_path_factory.mktemp("run")
    place = draw(folder / "data", 4, 10)
    for path in (place / "ids").iterdir():  # the training knows no box
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 3, 0, ids).astype(np.uint8)).save(path)
    data = DataConfig(kind="files", root=str(place), labeled="list.txt", val="list.txt", classes=NAMES)
    classes = [ClassInfo(name=name, color=(40 * i, 90, 20)) for i, name in enumerate(NAMES)]
    metrics = {"step": 1, "val": {"miou": {"linear": 0.1, "prototype": 0.1, "fused": 0.2}}}
    info = tiny_info(3).model_copy(update={"data": data, "classes": classes, "metrics": metrics})
    save_checkpoint(folder / "checkpoint", tiny_segmenter(3), info, tiny_segmenter(3).network)
    return folder


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("boxes"))


def call(run, *arguments, code=0):
    assert main([str(run), *map(str, arguments), "--device", "cpu"]) == code


def image_batch():
    return torch.from_numpy(np.moveaxis(photo(1, 64, 64), -1, 0))[None]


@pytest.fixture(scope="module")
def added(run, boxes, tmp_path_factory):
    out = tmp_path_factory.mktemp("added") / "with_box"
    with pytest.MonkeyPatch.context() as patch:
        # the features of an untrained network hardly tell the box: let the fit follow what there is
        patch.setattr(change, "STRENGTH", 1e-4)
        patch.setattr(change, "RARITY", 1.0)
        call(run, "--add", "box", "--images", boxes / "images", "--masks", boxes / "boxes",
             "--val", boxes / "list.txt", "-o", out)  # fmt: skip
    return out


def test_add_makes_an_ordinary_checkpoint(run, added, boxes):
    before, after = load_checkpoint(run), load_checkpoint(added)
    info = after.info
    assert info.name == "with_box"
    assert [item.name for item in info.classes] == [*NAMES, "box"]
    assert info.classes[:3] == before.info.classes
    assert info.classes[3].color not in [item.color for item in before.info.classes]
    assert [made.change for made in info.adapted] == ["add"]
    made = info.adapted[0]
    assert (made.classes, made.source, made.source_sha256) == (["box"], "tiny", before.info.weights_sha256)
    assert sorted(made.images) == ["0.png", "1.png", "2.png"]
    assert made.others == 4
    assert "255 is box" in made.masks
    with torch.no_grad():
        old, new = before.segmenter(image_batch()), after.segmenter(image_batch())
    torch.testing.assert_close(new.linear_logits[:, :3], old.linear_logits)
    torch.testing.assert_close(new.prototype_logits[:, :3], old.prototype_logits)
    assert sorted(p.name for p in added.iterdir()) == ["adapt.json", "adapt.png", "checkpoint"]
    figures = json.loads((added / "adapt.json").read_text())
    assert figures["before"]["per_class"]["linear"]["box"] == 0
    assert figures["after"]["per_class"]["linear"]["box"] > 0.5
    assert info.metrics["val"]["per_class"]["fused"] == figures["after"]["per_class"]["fused"]
    assert Image.open(added / "adapt.png").width > 800


def test_a_training_starts_from_it(added):
    loaded = load_checkpoint(added)
    info, network = loaded.info, tiny_segmenter(4, seed=1).network
    start_from_checkpoint(added, network, info.classes, info.input.mean, info.input.std)
    assert loaded.segmenter.network.stage_heads
    assert not network.stage_heads  # the training teaches it to the decoder
    assert torch.equal(network.linear_head[-1].weight, loaded.segmenter.network.linear_head[-1].weight)


def test_it_evaluates(added, boxes, tmp_path):
    code = evaluate([str(added), "--no-boundary", "--json", str(tmp_path / "e.json"), "--confusion",
                     str(tmp_path / "c.png"), "--device", "cpu", "--data", f"root={boxes}"])  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "e.json").read_text())["per_class"]["linear"]["box"] > 0.5


def test_mend(added, boxes, tmp_path, capsys):
    call(added, "--mend", "box", "--images", boxes / "list.txt", "-o", tmp_path / "out")
    assert "box is class 3" in capsys.readouterr().out
    info = read_info(tmp_path / "out" / "checkpoint")
    assert [made.change for made in info.adapted] == ["add", "mend"]
    assert info.metrics == {}
    assert info.best_head() in ("linear", "prototype", "fused")


def test_rename_changes_nothing_but_the_name(run, tmp_path, capsys):
    call(run, "--rename", "sky", "heaven", "-o", tmp_path / "out")
    before, after = load_checkpoint(run), load_checkpoint(tmp_path / "out")
    assert [item.name for item in after.info.classes] == ["ground", "heaven", "water"]
    assert after.info.data.classes == ["ground", "heaven", "water"]
    assert after.info.best_head() == "fused"
    with torch.no_grad():
        old, new = before.segmenter(image_batch()), after.segmenter(image_batch())
    assert torch.equal(old.linear_logits, new.linear_logits)


@pytest.mark.parametrize(
    ("arguments", "names", "table"),
    [
        (["--remove", "sky"], ["ground", "water"], {"0": "ground", "1": "ignore", "2": "water"}),
        (["--merge", "water", "ground"], ["sky", "water"], {"0": "water", "1": "sky", "2": "water"}),
    ],
)
def test_masks_of_the_training_are_read_as_the_classes_are_now(
    run, tmp_path, capsys, arguments, names, table
):
    call(run, *arguments, "-o", tmp_path / "out")
    info = read_info(tmp_path / "out" / "checkpoint")
    assert [item.name for item in info.classes] == names
    assert info.data.label_map == table
    assert evaluate([str(tmp_path / "out"), "--no-boundary", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for name in names:
        assert name in said


def test_dry_run_writes_nothing(run, boxes, tmp_path, capsys):
    call(run, "--add", "box", "--images", boxes / "images", "--masks", boxes / "boxes", "--dry-run",
         "-o", tmp_path / "out")  # fmt: skip
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--add", "sky"], "has a class 'sky' already; --mend sky"),
        (["--add", "void"], "is no name of a class"),
        (["--add", "box"], "needs --images"),
        (["--mend", "box"], "has no class 'box'; it has ground, sky, water"),
        (["--rename", "sky", "water"], "has a class 'water' already; --merge water sky makes one"),
        (["--merge", "sky", "sky"], "name two classes"),
        (["--remove", "sky", "--images", "x"], "--images has no meaning with --remove"),
        (["--remove", "sky", "--color", "1,2,3"], "--color has no meaning"),
    ],
)
def test_refused(run, tmp_path, capsys, arguments, said):
    call(run, *arguments, "-o", tmp_path / "out", code=1)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_without_a_mask_and_masks_of_several_classes_are_told(run, boxes, tmp_path, capsys):
    few = draw(tmp_path / "few", 3)
    given = ["--add", "box", "--images", few / "images", "--masks", few / "ids", "-o", tmp_path / "out"]
    (few / "ids" / "2.png").unlink()
    call(run, *given, code=1)
    said = capsys.readouterr().err
    assert "2.png" in said
    assert "(1 such image(s)); leave out of --images what has no mask" in said
    for path in (few / "ids").iterdir():
        ids = np.array(Image.open(path))
        ids[0, 0] = 7
        Image.fromarray(ids).save(path)
    (few / "images" / "2.png").unlink()
    call(run, *given, code=1)
    # of several values that of the next class
    assert "none is surely box. Say which with --value, as --value 3" in capsys.readouterr().err


@pytest.fixture
def explained(run, tmp_path):
    """The run with an atlas of its training."""
    source = tmp_path / "run"
    save_checkpoint(source / "checkpoint", load_checkpoint(run).segmenter, load_checkpoint(run).info)
    protoseg.explain(source, images=2, device="cpu")
    return source


def test_what_does_not_fit_the_new_weights_is_named(explained, tmp_path, capsys):
    call(explained, "--merge", "sky", "water", "-o", tmp_path / "a")
    assert f"next: protoseg explain {tmp_path / 'a'}: what tiny has" in capsys.readouterr().out
    protoseg.novelty(explained, device="cpu")
    call(explained, "--rename", "sky", "heaven", "-o", tmp_path / "b")
    assert f"next: protoseg novelty {tmp_path / 'b'}: what tiny has" in capsys.readouterr().out
    (explained / "prototypes" / "0000.jpg").unlink()
    call(explained, "--rename", "sky", "heaven", "-o", tmp_path / "c")
    assert "no atlas: " in capsys.readouterr().out
    assert not (tmp_path / "c" / "prototypes").exists()


def test_the_atlas_is_carried_with_patches_of_the_images_that_were_given(explained, boxes, tmp_path):
    call(explained, "--add", "box", "--images", boxes / "images", "--masks", boxes / "boxes",
         "-o", tmp_path / "added")  # fmt: skip
    before, out = read_atlas(explained / "prototypes"), tmp_path / "added"
    atlas = read_atlas(out / "prototypes")
    assert atlas.weights_sha256 == read_info(out / "checkpoint").weights_sha256
    assert (atlas.classes, atlas.num_images) == ([*NAMES, "box"], 5)
    assert atlas.prototypes[:6] == before.prototypes
    for item in atlas.prototypes[6:]:
        assert atlas.classes[item.class_id] == "box"
        assert {patch.image for patch in item.patches} == {"0.png", "1.png", "2.png"}
        assert {patch.label for patch in item.patches} <= {"box", None}
        assert item.use_share is not None
    # images of the training do not show the class: what is known of it stays
    again = protoseg.explain(out, images=2, device="cpu", data={"root": str(boxes)}).atlas
    assert [item.index for item in again.prototypes] == list(range(8))
    protoseg.explain(out, images=2, device="cpu")
    assert read_atlas(out / "prototypes").prototypes[6:] == again.prototypes[6:] != atlas.prototypes[6:]


def test_the_atlas_goes_with_the_names_and_places_of_classes(explained, tmp_path):
    call(explained, "--remove", "ground", "-o", tmp_path / "removed")
    atlas = read_atlas(tmp_path / "removed" / "prototypes")
    assert [(item.index, item.class_id) for item in atlas.prototypes] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    labels = {patch.label for item in atlas.prototypes for patch in item.patches}
    assert labels <= {"sky", "water", None}
    was = read_atlas(explained / "prototypes").prototypes[2:]
    assert [item.use_share for item in atlas.prototypes] == [item.use_share for item in was]
    assert (tmp_path / "removed" / "prototypes" / "0000.jpg").is_file()
    call(explained, "--rename", "sky", "heaven", "-o", tmp_path / "renamed")
    labels = {p.label for i in read_atlas(tmp_path / "renamed" / "prototypes").prototypes for p in i.patches}
    assert "sky" not in labels
    assert "heaven" in labels


def test_a_checkpoint_is_never_overwritten(run, tmp_path, capsys):
    call(run, "--remove", "sky", "-o", run, code=1)
    assert "holds a checkpoint already" in capsys.readouterr().err


def test_without_prototypes(run, boxes, tmp_path, capsys):
    segmenter = tiny_segmenter(3)
    segmenter.bank.active.zero_()
    save_checkpoint(tmp_path / "plain" / "checkpoint", segmenter, read_info(run / "checkpoint"))
    call(tmp_path / "plain", "--remove", "sky", "-o", tmp_path / "out", code=1)
    assert "has no prototypes" in capsys.readouterr().err


def test_images_of_the_training_that_have_gone_are_told(run, boxes, tmp_path, capsys):
    checkpoint = load_checkpoint(run)
    data = checkpoint.info.data.model_copy(update={"root": str(tmp_path / "gone")})
    save_checkpoint(tmp_path / "moved" / "checkpoint", checkpoint.segmenter,
                    checkpoint.info.model_copy(update={"data": data}))  # fmt: skip
    call(tmp_path / "moved", "--add", "box", "--images", boxes / "images", "--masks", boxes / "boxes",
         "-o", tmp_path / "out")  # fmt: skip
    assert "the images of the training are not here" in capsys.readouterr().out
    call(tmp_path / "moved", "--add", "box", "--images", boxes / "images", "--masks", boxes / "boxes",
         "--others", run / "data" / "images", "-o", tmp_path / "told")  # fmt: skip
    assert f"others: 4 images of {run / 'data' / 'images'}" in capsys.readouterr().out
    assert read_info(tmp_path / "told" / "checkpoint").adapted[0].others == 4


@pytest.mark.slow
def test_a_trained_run_is_exported_with_parity(boxes, tmp_path):
    trained = protoseg.train(short_quickstart(), run={"dir": str(tmp_path), "name": "scenes"})
    out = tmp_path / "with_box"
    call(
        trained.folder, "--add", "violet", "--images", boxes / "images", "--masks", boxes / "boxes", "-o", out
    )
    done = subprocess.run(
        [sys.executable, "-m", "export.onnx", str(out)], cwd=PROJECT_ROOT, env=quiet_environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((out / "bundle" / "manifest.json").read_text())
    assert manifest["files"][0]["parity"]["status"] == "passed"
    assert manifest["classes"][-1]["name"] == "violet"
    assert manifest["adapted"][0]["classes"] == ["violet"]
    assert protoseg.load(out / "bundle")(photo(1, 64, 64)).labels.shape == (64, 64)
