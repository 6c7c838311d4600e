"""Up to a hub and back, against a stand-in of its HTTP interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from share.conftest import PRIVATE
from share.hub_server import READER, Hub, Repo
from tiny import photo, quiet_environment

import protoseg
from benchmarks.serving_bundle import make_bundle
from protoseg import Segmenter, UserError
from protoseg.share.card import edited
from protoseg.share.contents import collect, find_model, shareable
from protoseg.share.push import main as push

ADDRESS = "hf://me/cracks"


def pushed(run: Path, *options: str) -> None:
    assert push([str(run), ADDRESS, *options]) == 0


def test_what_was_pushed_loads_with_equal_labels(run: Path, hub: Hub) -> None:
    pushed(run, "--license", "cc-by-4.0")
    assert hub.repos["me/cracks"].private
    model, image = protoseg.load(ADDRESS), photo(3)
    assert isinstance(model, Segmenter)
    np.testing.assert_array_equal(model(image).labels, protoseg.load(run)(image).labels)
    np.testing.assert_array_equal(model(image).confidence, protoseg.load(run)(image).confidence)
    assert hub.downloaded() == {"checkpoint/config.json", "checkpoint/model.safetensors"}
    bundle = protoseg.load(ADDRESS, prefer="bundle", device="cpu")
    assert bundle.kind == "bundle"
    expected = protoseg.load(run, prefer="bundle", device="cpu")(image)
    np.testing.assert_array_equal(bundle(image).labels, expected.labels)
    assert not any(name.endswith((".pkl", ".md", ".yaml")) for name in hub.downloaded())


def test_only_what_others_need_goes_up(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "bundle" / "model.plan").write_bytes(b"engine")
    assert push([str(run), ADDRESS, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert hub.requests == []
    assert "dry run: nothing was uploaded" in listed
    pushed(run)
    files = hub.files("me/cracks")
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.yaml", "curves.png", "pictures/step_00000002.png",
        "checkpoint/config.json", "checkpoint/model.safetensors", "bundle/manifest.json",
        "bundle/model.onnx", "bundle/model.labels.onnx", "bundle/samples/0.png",
        "bundle/samples/0_labels.png",
    }  # fmt: skip
    assert all(name in listed for name in files if name != ".gitattributes")
    for name, content in files.items():
        assert b"somebody" not in content, name
    assert f"checkpoint/config.json: data.root: {PRIVATE} -> camvid" in listed
    assert "model.pretrained: ~/weights/encoder.safetensors -> encoder.safetensors" in listed
    assert "data.val: ../elsewhere/val.txt -> val.txt" in listed
    assert b"lists/labeled.txt" in files["checkpoint/config.json"]
    assert "these show your images: bundle/samples/0.png, pictures/step_00000002.png" in listed
    assert "the bundle was not made from this checkpoint: export again" in listed
    assert not edited(files["README.md"].decode())
    assert ADDRESS in files["README.md"].decode()


def test_training_patches_of_a_bundle_go_along_and_are_told(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", explains=True)
    shared = collect(find_model(folder))
    strips = {f"bundle/prototypes/{n:04d}.jpg" for n in range(5)}
    assert set(shared.files) >= {"bundle/prototypes/atlas.json", *strips}
    assert set(shared.images) == {"bundle/samples/0.png", *strips}


def test_what_was_fitted_to_the_weights_goes_with_them(run: Path, hub: Hub) -> None:
    (run / "checkpoint" / "novelty.safetensors").write_bytes(b"fitted")
    pushed(run)
    assert hub.files("me/cracks")["checkpoint/novelty.safetensors"] == b"fitted"


def test_a_later_model_takes_the_place_of_the_earlier_one(run: Path, hub: Hub) -> None:
    pushed(run, "--student")
    assert "checkpoint/student.safetensors" in hub.files("me/cracks")
    student = protoseg.load(ADDRESS, student=True)(photo(2)).labels
    np.testing.assert_array_equal(student, protoseg.load(run, student=True)(photo(2)).labels)
    pushed(run, "--only", "bundle", "--no-pictures")
    names = set(hub.files("me/cracks"))
    assert not any(name.startswith(("checkpoint/", "pictures/")) for name in names)
    assert protoseg.load(ADDRESS, device="cpu").kind == "bundle"
    before = hub.repos["me/cracks"].branches["main"]
    pushed(run, "--only", "bundle", "--no-pictures")
    assert hub.files("me/cracks", before).keys() == names


def test_a_revision_is_a_branch_or_a_commit(run: Path, hub: Hub) -> None:
    assert push([str(run), f"{ADDRESS}@v2", "--only", "checkpoint"]) == 0
    assert "checkpoint/config.json" not in hub.files("me/cracks")
    commit = hub.repos["me/cracks"].branches["v2"]
    for revision in ("v2", commit):
        assert protoseg.load(f"{ADDRESS}@{revision}").path.parts[-2] == commit
    with pytest.raises(
        UserError, match="no model of protoseg that can be loaded: it has no folder checkpoint or"
    ):
        protoseg.load(ADDRESS)
    with pytest.raises(UserError, match="me/cracks has no revision v9"):
        protoseg.load(f"{ADDRESS}@v9")


def test_the_cache_answers_without_the_hub(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(run)
    expected = protoseg.load(ADDRESS)(photo(4)).labels
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    np.testing.assert_array_equal(protoseg.load(ADDRESS)(photo(4)).labels, expected)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*does not hold all of it"):
        protoseg.load(ADDRESS, prefer="bundle")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        protoseg.load("hf://me/other")
    assert hub.requests == []


def test_a_file_that_is_not_the_described_one_is_refused(run: Path, hub: Hub) -> None:
    pushed(run)
    for kind, file in (("checkpoint", "checkpoint/model.safetensors"), ("bundle", "bundle/model.onnx")):
        files = hub.files("me/cracks")
        files[file] = files[file][:-1] + bytes([files[file][-1] ^ 1])
        hub.repos["me/cracks"].commit("main", files)
        with pytest.raises(UserError, match=r"(?s)does not match .*delete .* to download it again"):
            protoseg.load(ADDRESS, prefer=kind)  # type: ignore[arg-type]


def test_a_public_repository_is_asked_for(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(run, "--public", "--only", "checkpoint")
    assert not hub.repos["me/cracks"].private
    before = hub.repos["me/cracks"].branches["main"]
    assert push([str(run), ADDRESS]) == 1
    assert "me/cracks is public: everybody could read what is uploaded" in capsys.readouterr().err
    assert hub.repos["me/cracks"].branches["main"] == before


def test_a_card_that_was_edited_stays(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(run)
    files = {**hub.files("me/cracks"), "README.md": b"---\nlicense: mit\n---\nMy words.\n"}
    hub.repos["me/cracks"].commit("main", files)
    pushed(run)
    assert "the card on the hub was edited" in capsys.readouterr().out
    assert hub.files("me/cracks")["README.md"] == files["README.md"]
    pushed(run, "--force")
    assert hub.files("me/cracks")["README.md"] != files["README.md"]
    (run / "README.md").write_text("mine", encoding="utf-8")
    assert push([str(run), ADDRESS, "--license", "mit"]) == 1
    assert "was edited, and is uploaded as it is" in capsys.readouterr().err
    pushed(run, "--force")
    assert hub.files("me/cracks")["README.md"] == b"mine"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "uploading needs a token with write access"),
        ("hf_wrong", "does not know your token"),
        (READER, "your token has no right to it"),
    ],
)
def test_who_may_not_push_is_told(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    token: str | None, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "absent")
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
        hub.repos["me/cracks"] = Repo(private=True)
        hub.repos["me/cracks"].commit("main", {})
    assert push([str(run), ADDRESS]) == 1
    assert says in capsys.readouterr().err
    assert all(files == {} for repo in hub.repos.values() for files in repo.commits.values())


def test_what_cannot_be_loaded_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"has no model me/absent, or it is private and not seen by your token"
    ):
        protoseg.load("hf://me/absent")
    for wrong in ("hf://cracks", "hf://me/cracks/more", "hf://me/cra cks", "hf://me/cracks@", "hf://me/a--b"):
        with pytest.raises(UserError, match="expected hf://user/name"):
            protoseg.load(wrong)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 is not reached"):
        protoseg.load("hf://me/absent")


def test_a_licence_that_the_hub_refuses_uploads_nothing(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push([str(run), ADDRESS, "--license", "not-a-license"]) == 1
    assert '"license" must be one of' in capsys.readouterr().err
    assert set(hub.files("me/cracks")) == {".gitattributes"}
    assert push([str(run), ADDRESS, "--license", "No Licence"]) == 1


def test_methods_of_a_segmenter(run: Path, hub: Hub, tmp_path: Path) -> None:
    model = protoseg.load(run)
    assert isinstance(model, Segmenter)
    url = model.push_to_hub("me/cracks", commit_message="First", license="mit")
    assert url.startswith(f"{hub.url}/me/cracks/commit/")
    assert "license: mit" in hub.files("me/cracks")["README.md"].decode()
    assert not any(name.startswith("bundle/") for name in hub.files("me/cracks"))
    loaded = Segmenter.from_pretrained("me/cracks", cache_dir=tmp_path / "own", head="linear")
    assert loaded.path.is_relative_to(tmp_path / "own")
    np.testing.assert_array_equal(loaded(photo(1)).labels, protoseg.load(run, head="linear")(photo(1)).labels)
    assert Segmenter.from_pretrained(run).path == run / "checkpoint"
    with pytest.raises(UserError, match="another one"):
        Segmenter.from_pretrained("hf://me/cracks@v1", revision="v2")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("root", "/data/camvid/", "camvid"),
        ("root", r"C:\Users\me\set", "set"),
        ("root", r"\\server\share\set", "set"),
        ("root", "file:///home/me/set", "set"),
        ("root", "..", "."),
        ("root", "~", "."),
        ("labeled", "lists/train.txt", "lists/train.txt"),
        ("encoder", "vit_small.v1", "vit_small.v1"),
        ("uri", "https://me:pass@host/x", "https://host/x"),
        ("train.api_key", "abc", None),
        ("num_tokens", 5, 5),
    ],
)
def test_paths_and_secrets_are_not_shared(key: str, value: object, expected: object) -> None:
    assert shareable(key, value) == expected


@pytest.mark.slow
def test_a_bundle_of_a_hub_runs_without_torch(run: Path, hub: Hub, tmp_path: Path) -> None:
    """And so as a new process sees it, with nothing but the variables that users set."""
    script = (
        "import sys\nsys.modules['torch'] = None\nimport numpy as np, protoseg\n"
        f"model = protoseg.load('{ADDRESS}', device='cpu')\n"
        "print(model(np.zeros((40, 48, 3), np.uint8)).labels.shape)"
    )
    environment = {**quiet_environment(), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer",
                   "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    for command in (["-m", "protoseg", "push", str(run), ADDRESS], ["-c", script]):
        done = subprocess.run([sys.executable, *command], env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert "(40, 48)" in done.stdout
