"""Requests that need few outputs are answered by a proven graph that was cut down to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from serving.errors import BundleError
from serving.model.bundle import check_bundle
from serving.model.model import Model
from serving.model.network import Network
from serving.model.open import open_model
from serving.settings import Settings

ALL = ("labels", "confidence", "agreement", "logits", "logits_stride")


def calls(model: Model, **options: Any) -> list[str]:
    """Which graph a prediction runs."""
    network, ran = model.network, list[str]()
    full, cuts = network._full, network._cuts

    def spy(name: str, graph: Any) -> Any:
        return lambda batch: ran.append(name) or graph(batch)

    network._full = spy("full", full)
    network._cuts = [(outputs, spy("+".join(outputs), cut)) for outputs, cut in cuts]
    model.predict(sample_image(40, 56), **options)
    network._full, network._cuts = full, cuts
    return ran


@pytest.mark.parametrize(
    ("outputs", "fused", "cuts", "used"),
    [
        (("labels", "confidence", "agreement"), True, ["labels"], "labels"),
        (ALL, True, ["logits_stride", "labels"], "logits_stride"),
        (ALL, False, ["labels"], "labels"),
        (("labels",), True, [], "full"),
    ],
)
def test_masks_come_from_the_cut(
    outputs: tuple[str, ...], fused: bool, cuts: list[str], used: str, tmp_path: Path
) -> None:
    folder = make_bundle(tmp_path, outputs=outputs)
    settings = Settings(fused=fused, device="cpu")
    (bundle,) = check_bundle(folder, settings)
    assert [cut.name for cut in bundle.cuts] == [f"model.{name}.onnx" for name in cuts]
    assert bundle.artifact.name == "model.onnx"
    with open_model(folder, settings) as model:
        assert model.outputs == outputs
        assert calls(model) == [used]
        assert len(model.network._cuts) == len(cuts[:1])
        assert calls(model, confidence=True) == [used if model.fused else "full"]
        if "agreement" in outputs:
            assert calls(model, label_probability=True) == ["full"]


def test_labels_are_cut_too_where_the_argmax_stays_in_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any) -> Any:
        return np.zeros((96, 128), np.uint8), None

    folder = make_bundle(tmp_path, outputs=ALL)
    monkeypatch.setattr("serving.model.model.argmax_planes", other)
    with open_model(folder, Settings(device="cpu")) as model:
        assert not model.fused
        assert calls(model) == ["labels"]


def test_cut_and_graph_give_the_same_labels(tmp_path: Path) -> None:
    with (
        open_model(make_bundle(tmp_path / "new"), Settings()) as new,
        open_model(make_bundle(tmp_path / "old", cuts=False), Settings()) as old,
    ):
        image = sample_image(61, 85, seed=4)
        assert (calls(new), calls(old)) == (["labels"], ["full"])
        np.testing.assert_array_equal(new.predict(image).labels, old.predict(image).labels)


def edit_cut(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (cut,) = [item for item in manifest["files"] if item["cut_of"]]
    cut |= changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("status", ["failed", "not_run", "inconclusive"])
def test_a_cut_that_is_not_proven_is_not_opened(tmp_path: Path, status: str) -> None:
    folder = make_bundle(tmp_path)
    edit_cut(folder, parity={"status": status, "reason": "", "cases": []})
    (bundle,) = check_bundle(folder, Settings())
    assert bundle.cuts == ()
    with open_model(folder, Settings()) as model:
        assert calls(model) == ["full"]


def test_a_cut_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    with (folder / "model.labels.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"model\.labels\.onnx does not match the manifest"):
        check_bundle(folder, Settings())


def test_a_cut_of_another_graph_is_left_alone(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    edit_cut(folder, cut_of="model.int8.onnx")
    assert check_bundle(folder, Settings())[0].cuts == ()
    # a cut alone is never what is served
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [item for item in manifest["files"] if item["cut_of"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="it has none"):
        check_bundle(folder, Settings())


def test_a_gpu_runs_the_whole_graph() -> None:
    class Graph:
        provider = "cuda"
        description = "cuda"
        outputs = ()

    assert Network(Graph()).on_gpu  # type: ignore[arg-type]
