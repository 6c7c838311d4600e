"""Why, over HTTP: points, regions, the grid, thumbnails, and what a bundle without an atlas answers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.nearest_color import COLORS
from benchmarks.serving_bundle import make_bundle
from protoseg.manifest import MANIFEST_NAME, read_manifest
from serving.errors import BundleError
from serving.model.open import open_model
from serving.settings import Settings


@pytest.fixture(scope="module")
def explaining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("explaining") / "bundle", explains=True)


@pytest.fixture(scope="module")
def answering(serve: Any, explaining: Path) -> Any:
    return serve(model=str(explaining))


@pytest.fixture
def halves(helpers: Any) -> bytes:
    """Left half red, right half blue; 40 x 60 pixels."""
    pixels = np.empty((40, 60, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = COLORS[1], COLORS[3]
    data: bytes = helpers.encode(pixels)
    return data


def ask(client: Any, data: bytes, query: str) -> Any:
    return client.post(f"/v1/segment?output=explain{query}", content=data)


def test_points(answering: Any, halves: bytes) -> None:
    reply = ask(answering, halves, "&x=5,50&y=8,39")
    assert reply.status_code == 200, reply.text
    value = reply.json()
    assert (value["width"], value["height"]) == (60, 40)
    assert "regions" not in value
    left, right = value["points"]
    assert (left["x"], left["y"], left["class"], left["prototype"]) == (5, 8, "red", 1)
    assert (right["class"], right["class_id"], right["prototype_class"]) == ("blue", 3, "blue")
    assert left["similarity"] > 0.99 > left["runner_up_similarity"]
    assert [item["index"] for item in value["prototypes"]] == [1, 3]
    named = value["prototypes"][1]
    assert (named["class"], named["number"], len(named["patches"])) == ("blue", 0, 2)
    assert named["patches"][0]["image"] == "train/0.png"
    # the address that it names has its patches: two squares of its colour
    assert named["thumbnails"] == {"path": "/v1/prototypes/3", "side": 32}
    strip = answering.get(named["thumbnails"]["path"])
    assert strip.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(strip.content)) as picture:
        assert picture.size == (64, 32)
        assert np.abs(np.asarray(picture)[16, 48].astype(int) - COLORS[3]).max() < 12


def test_regions_and_the_class_filter(answering: Any, halves: bytes) -> None:
    value = ask(answering, halves, "").json()
    red, blue = value["regions"]
    assert (red["class"], red["box"], blue["class"], blue["box"]) == (
        "red", [0, 0, 40, 32], "blue", [0, 32, 40, 60],
    )  # fmt: skip
    assert red["share"] + blue["share"] == pytest.approx(1, abs=1e-3)
    assert value["regions_left_out"] == 0
    only = ask(answering, halves, "&classes=blue").json()
    assert [item["class"] for item in only["regions"]] == ["blue"]


def test_the_grid_covers_the_image_and_names_every_prototype(answering: Any, halves: bytes) -> None:
    value = ask(answering, halves, "&grid=1").json()
    grid = value["grid"]
    assert (grid["rows"], grid["columns"], grid["covered"]) == (10, 15, [10.0, 15.0])
    cells = np.frombuffer(base64.b64decode(grid["prototype"]), "<u2").reshape(10, 15)
    assert (cells[:, :8] == 1).all()
    assert (cells[:, 8:] == 3).all()
    assert len(value["prototypes"]) == 5


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("&x=5", "x and y are pairs: got 1 of x and 0 of y"),
        ("&x=60&y=0", "no pixel x=60, y=0; the map has 60x40"),
        ("&x=-1&y=0", "whole pixel numbers"),
        ("&x=1.5&y=0", "whole pixel numbers"),
        (f"&x={'1,' * 300}1&y=1", "at most 256 pixels"),
        ("&grid=yes", "grid"),
    ],
)
def test_bad_questions(answering: Any, halves: bytes, query: str, says: str) -> None:
    reply = ask(answering, halves, query)
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "bad_parameter"
    assert says in reply.json()["error"]["message"]


def test_an_image_that_would_be_tiled_is_told(serve: Any, explaining: Path, helpers: Any) -> None:
    client = serve(model=str(explaining), max_network_pixels=4096)
    reply = ask(client, helpers.encode(np.zeros((80, 80, 3), np.uint8)), "")
    assert reply.status_code == 422
    assert "at most 4096 pixels" in reply.json()["error"]["message"]


def test_the_list_of_prototypes_and_what_is_not_in_it(answering: Any) -> None:
    value = answering.get("/v1/prototypes").json()
    assert [item["class"] for item in value["prototypes"]] == ["background", "red", "green", "blue", "white"]
    assert answering.get("/v1/model").json()["explains"] is True
    assert answering.get("/v1/prototypes/5").status_code == 404


def test_a_bundle_without_says_how_to_export_it(client: Any, png: bytes) -> None:
    assert client.get("/v1/model").json()["explains"] is False
    reply = ask(client, png, "")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "bad_output")
    for message in (
        reply.json()["error"]["message"],
        client.get("/v1/prototypes").json()["error"]["message"],
    ):
        assert message.endswith("export it with: python -m export.onnx CKPT --explain")
    assert client.get("/v1/prototypes/0").status_code == 422


def test_batches_and_other_protocols_explain_too(answering: Any, halves: bytes) -> None:
    files = [("image", ("a.png", halves, "image/png"))] * 2
    items = answering.post("/v1/segment/batch?output=explain&x=5&y=8", files=files).json()["items"]
    assert [item["result"]["points"][0]["class"] for item in items] == ["red", "red"]
    body = {"instances": [{"b64": base64.b64encode(halves).decode()}],
            "parameters": {"output": "explain", "x": 50, "y": 8}}  # fmt: skip
    found = answering.post("/predict", json=body).json()["predictions"]
    assert found[0]["points"][0]["class"] == "blue"


def test_fixed_shapes_are_padded(serve: Any, tmp_path: Path, halves: bytes) -> None:
    folder = make_bundle(tmp_path / "bundle", explains=True, static_shape=(1, 64, 96))
    value = ask(serve(model=str(folder)), halves, "&x=5,50&y=8,39&grid=1").json()
    assert [item["prototype_class"] for item in value["points"]] == ["red", "blue"]
    assert (value["grid"]["rows"], value["grid"]["columns"]) == (10, 15)


def test_a_changed_thumbnail_or_another_networks_atlas_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", explains=True)
    strip = folder / "prototypes" / "0001.jpg"
    before = strip.read_bytes()
    strip.write_bytes(before + b" ")
    with pytest.raises(BundleError, match=r"0001\.jpg does not match the manifest"):
        open_model(folder, Settings(model=str(folder)))
    strip.write_bytes(before)
    manifest = read_manifest(folder)
    renamed = [item.model_copy(update={"name": f"other {item.name}"}) for item in manifest.classes]
    (folder / MANIFEST_NAME).write_text(manifest.model_copy(update={"classes": renamed}).model_dump_json())
    with pytest.raises(BundleError, match="of another network"):
        open_model(folder, Settings(model=str(folder)))
