from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protoseg.errors import UserError
from protoseg.manifest import read_manifest
from serving.errors import BundleError
from serving.model.bundle import check_bundle, find_bundle
from serving.settings import Settings

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(bundle: Path, change: Edit) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_good_bundle_passes(bundle: Path) -> None:
    (checked,) = check_bundle(bundle, Settings())
    assert checked.path == bundle / "model.onnx"
    assert checked.manifest.name == "nearest-color"


def set_key(*keys: Any, value: Any) -> Edit:
    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_key("schema_version", value=99), "schema version 99"),
        (set_key("colour", value=1), "colour"),
        (set_key("files", 0, "parity", "status", value="failed"), "parity of model.onnx is failed"),
        (set_key("files", 0, "parity", "status", value="not_run"), "python -m export.parity"),
        (set_key("files", 0, "sha256", value="0" * 64), "does not match the manifest"),
        (set_key("files", 0, "name", value="../copy/model.onnx"), None),
        (set_key("files", 0, "name", value="../../outside.onnx"), "outside of the bundle"),
        (set_key("files", 0, "precision", value="fp16"), "no fp32 ONNX file"),
        (set_key("files", 0, "outputs", value=[]), "no output labels of uint8"),
        (set_key("files", value=[]), "it has none"),
        (set_key("input", "channels", value=5), "5 channels"),
    ],
)
def test_bad_manifests_give_one_line(copy: Path, change: Edit, says: str | None) -> None:
    edit(copy, change)
    if says is None:
        assert check_bundle(copy, Settings())[0].folder == copy
        return
    with pytest.raises(UserError) as caught:
        check_bundle(copy, Settings())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tampered_and_missing_files(copy: Path) -> None:
    with (copy / "samples" / "0.png").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"0\.png does not match"):
        check_bundle(copy, Settings())
    (copy / "model.onnx").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        check_bundle(copy, Settings())
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        check_bundle(copy, Settings())


def place(root: Path, name: str, bundle: Path, created: str) -> Path:
    folder = Path(shutil.copytree(bundle, root / "runs" / name / "bundle"))
    edit(folder, set_key("created", value=created))
    return folder


def test_the_newest_run_is_found(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"python -m export\.onnx"):
        find_bundle(None, tmp_path)
    newest = place(tmp_path, "a", bundle, "2031-01-01T00:00:00+00:00")
    place(tmp_path, "b", bundle, "2030-01-01T00:00:00+00:00")
    assert find_bundle(None, tmp_path) == newest.resolve()
    assert find_bundle("runs/b", tmp_path) == (tmp_path / "runs" / "b" / "bundle").resolve()
    assert find_bundle(str(newest), tmp_path) == newest.resolve()
    with pytest.raises(BundleError, match="PROTOSEG_MODEL=nowhere"):
        find_bundle("nowhere", tmp_path)


def test_the_project_is_searched_from_elsewhere(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = place(tmp_path / "project", "a", bundle, "2030-01-01")
    monkeypatch.chdir(elsewhere)
    assert find_bundle(None, tmp_path / "project") == folder.resolve()
    assert find_bundle("runs/a/bundle", tmp_path / "project") == folder.resolve()


def test_proven_engines_come_first_and_onnx_steps_in(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    from protoseg.files import sha256_file
    from serving.model.open import open_model

    (copy / "model.plan").write_bytes(b"not an engine")

    def add(manifest: dict[str, Any]) -> None:
        changes = {"name": "model.plan", "kind": "tensorrt", "precision": "fp16", "opset": None}
        changes["sha256"] = sha256_file(copy / "model.plan")
        manifest["files"].append(manifest["files"][0] | changes)

    edit(copy, add)
    names = [item.artifact.name for item in check_bundle(copy, Settings())]
    assert names == ["model.plan", "model.onnx"]
    for settings in (Settings(device="cpu"), Settings(backend="onnx"), Settings(precision="fp32")):
        assert [item.artifact.name for item in check_bundle(copy, settings)] == ["model.onnx"]
    model = open_model(copy, Settings())
    assert model.bundle.artifact.name == "model.onnx"
    assert "model.plan is passed over" in caplog.text
    model.close()
    with pytest.raises(BundleError):
        open_model(copy, Settings(backend="tensorrt"))
    with pytest.raises(BundleError, match=r"export\.tensorrt"):
        check_bundle(copy, Settings(backend="tensorrt", precision="int8"))


def test_files_may_be_links_but_no_name_leads_out(bundle: Path, tmp_path: Path) -> None:
    """As huggingface_hub's cache and mounted volumes have them."""
    linked = tmp_path / "linked"
    (linked / "samples").mkdir(parents=True)
    for file in bundle.rglob("*.*"):
        (linked / file.relative_to(bundle)).symlink_to(file)
    assert check_bundle(linked, Settings())[0].artifact.name == "model.onnx"
    manifest = read_manifest(bundle)
    shutil.copy(bundle / "model.onnx", tmp_path / "model.onnx")
    for name in ("../model.onnx", str(tmp_path / "model.onnx")):
        files = [manifest.files[0].model_copy(update={"name": name})]
        (linked / "manifest.json").unlink(missing_ok=True)
        (linked / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())
        with pytest.raises(BundleError, match="lies outside of the bundle"):
            check_bundle(linked, Settings())


def test_openvino_serves_what_was_proven_in_it(copy: Path) -> None:
    settings = Settings(backend="openvino")
    with pytest.raises(BundleError, match=r"in openvino-bf16 is not_run.*--runtime openvino-bf16"):
        check_bundle(copy, settings)
    proof = {"status": "passed", "reason": "", "cases": []}
    edit(copy, set_key("files", 0, "notes", value={"openvino-bf16": {"parity": proof}}))
    (checked,) = check_bundle(copy, settings)
    assert checked.openvino == "openvino-bf16"
    assert checked.artifact.name == "model.onnx"
    assert not any(cut.cut_of is None for cut in checked.cuts)
    assert check_bundle(copy, Settings())[0].openvino is None
    with pytest.raises(BundleError, match="in openvino is not_run"):
        check_bundle(copy, Settings(backend="openvino", openvino_precision="fp32"))
    with pytest.raises(BundleError, match="not PROTOSEG_DEVICE=cuda"):
        check_bundle(copy, Settings(backend="openvino", device="cuda"))
