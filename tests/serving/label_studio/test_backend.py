"""The backend's routes, in this process; Label Studio is stood in for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from protoseg.annotate.formats.label_studio import interface as write_interface
from protoseg.convert.rle import decode_label_studio
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo
from serving.label_studio.__main__ import FromBundle, _parser, main, make_backend
from serving.label_studio.app import Backend, build_app
from serving.label_studio.fetch import FetchError, LabelStudio
from serving.label_studio.interface import read_interface
from serving.label_studio.trainer import Trainer

CLASSES = [ClassInfo(name=name, color=(9, 9, 9)) for name in ("background", "cat", "dog")]
URL = "http://tool:8080"


def studio(handler: Any, token: str = "legacy", **options: Any) -> LabelStudio:
    return LabelStudio(URL, token, transport=httpx.MockTransport(handler), **options)


@pytest.fixture(scope="module")
def model(bundle: Path) -> FromBundle:
    return FromBundle(bundle)


def backend_of(model: FromBundle, png: bytes, **changed: Any) -> Backend:
    def serve(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Token legacy"
        if request.url.path == "/data/upload/1/a.png":
            return httpx.Response(200, content=png)
        if request.url.path == "/data/upload/1/text.png":
            return httpx.Response(200, content=b"no image")
        return httpx.Response(404)

    settings: dict[str, Any] = {
        "model": model, "images": studio(serve), "trainer": Trainer([]), "skip": "", "min_pixels": 0,
        "min_confidence": 0.0, "user": None,
    }  # fmt: skip
    return Backend(**{**settings, **changed})


def client_of(backend: Backend) -> TestClient:
    return TestClient(build_app(backend))


def ask(model: FromBundle, *addresses: str, **changed: Any) -> dict[str, Any]:
    tasks = [{"id": number, "data": {"image": address}} for number, address in enumerate(addresses, 1)]
    return {
        "tasks": tasks,
        "label_config": write_interface(model.info().classes),
        "project": "1.2",
        **changed,
    }


def test_predictions_are_those_of_the_bundle(model: FromBundle, png: bytes) -> None:
    client = client_of(backend_of(model, png))
    told = client.get("/health").json()
    assert told["status"] == "UP"
    answer = client.post("/setup", json={"project": "1.2", "schema": write_interface(model.info().classes)})
    assert answer.json() == {"model_version": told["model_version"]}
    (found,) = client.post("/predict", json=ask(model, "/data/upload/1/a.png")).json()["results"]
    assert found["model_version"] == told["model_version"]
    wanted = model.segment(png).labels
    seen = np.full(wanted.shape, 255, np.uint8)
    names = [item.name for item in model.info().classes]
    for region in found["result"]:
        height, width = region["original_height"], region["original_width"]
        mask = decode_label_studio(region["value"]["rle"], height, width)
        assert (seen[mask] == 255).all()
        seen[mask] = names.index(region["value"]["brushlabels"][0])
    np.testing.assert_array_equal(seen, wanted)


def test_what_is_skipped_or_small_is_not_proposed(model: FromBundle, png: bytes) -> None:
    labels = model.segment(png).labels
    names = [item.name for item in model.info().classes]
    largest = names[int(np.bincount(labels.ravel()).argmax())]
    for changed in ({"skip": largest}, {"min_pixels": labels.size + 1}):
        client = client_of(backend_of(model, png, **changed))
        (found,) = client.post("/predict", json=ask(model, "/data/upload/1/a.png")).json()["results"]
        proposed = [region["value"]["brushlabels"][0] for region in found["result"]]
        assert largest not in proposed
        assert "min_pixels" not in changed or proposed == []


def test_a_task_that_fails_alone_says_why_and_costs_others_nothing(model: FromBundle, png: bytes) -> None:
    client = client_of(backend_of(model, png))
    gone = client.post("/predict", json=ask(model, "/data/upload/1/gone.png"))
    assert gone.status_code == 500
    assert "gone.png: Label Studio answers 404" in gone.json()["detail"]
    broken = client.post("/predict", json=ask(model, "/data/upload/1/text.png"))
    assert broken.status_code == 500
    both = client.post("/predict", json=ask(model, "/data/upload/1/gone.png", "/data/upload/1/a.png"))
    first, second = both.json()["results"]
    assert "result" not in first, "Label Studio would keep an empty one"
    assert "answers 404" in first["error"]
    assert second["result"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"tasks": 3}, 400, "expected tasks"),
        ({"tasks": [], "label_config": "<View/>"}, 500, "no <BrushLabels> over an <Image>"),
        ([1], 400, "expected a JSON object"),
    ],
)
def test_requests_that_are_none(model: FromBundle, png: bytes, body: Any, status: int, text: str) -> None:
    answer = client_of(backend_of(model, png)).post("/predict", json=body)
    assert answer.status_code == status
    assert text in answer.json()["detail"]


def test_other_content_types_are_refused_so_that_no_foreign_page_can_start_anything(
    model: FromBundle, png: bytes, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    trainer = Trainer([sys.executable, "-c", f"open({str(trace)!r}, 'w')"])
    client = client_of(backend_of(model, png, trainer=trainer))
    answer = client.post(
        "/webhook", content='{"action": "START_TRAINING"}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 400
    assert client.get("/webhook").status_code == 405
    assert not trace.exists()


def test_trainings_start_one_at_a_time_and_only_with_a_command(
    model: FromBundle, png: bytes, tmp_path: Path
) -> None:
    event = {"action": "START_TRAINING", "project": {"id": 7}}
    off = client_of(backend_of(model, png)).post("/webhook", json=event)
    assert off.status_code == 409
    assert "--train" in off.json()["detail"]
    code = (
        "import os, pathlib, time; place = pathlib.Path(os.environ['PLACE'])\n"
        "(place / 'started').write_text(os.environ['LABEL_STUDIO_PROJECT'])\n"
        "while not (place / 'go').exists(): time.sleep(0.01)"
    )
    trainer = Trainer([sys.executable, "-c", f"import os; os.environ['PLACE'] = {str(tmp_path)!r}\n{code}"])
    client = client_of(backend_of(model, png, trainer=trainer))
    assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).json() == {"status": "ignored"}
    assert client.post("/webhook", json=event).status_code == 201
    assert client.post("/webhook", json=event).status_code == 409
    wait_for(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text())
    assert (tmp_path / "started").read_text() == "7"
    (tmp_path / "go").touch()
    wait_for(lambda: trainer._process.poll() == 0)
    (tmp_path / "go").unlink()
    assert client.post("/train", json={"project": "7.1700000000"}).status_code == 201
    trainer.stop()
    assert trainer._process.poll() is not None
    missing = client_of(backend_of(model, png, trainer=Trainer([str(tmp_path / "none")])))
    assert missing.post("/webhook", json=event).status_code == 500


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_password_is_asked_for(model: FromBundle, png: bytes) -> None:
    client = client_of(backend_of(model, png, user=("ls", "secret")))
    assert client.get("/health").status_code == 401
    assert client.get("/health", auth=("ls", "wrong")).status_code == 401
    assert client.get("/health", auth=("ls", "secret")).status_code == 200


def test_images_come_from_label_studio_alone() -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((str(request.url), request.headers.get("authorization", "")))
        if request.url.path == "/away":
            return httpx.Response(303, headers={"location": "http://evil/secret"})
        if request.url.path == "/stored":
            return httpx.Response(303, headers={"location": "http://bucket:9/x.png"})
        if request.url.path == "/round":
            return httpx.Response(302, headers={"location": "/round"})
        return httpx.Response(200, content=b"bytes")

    reader = studio(answer, allowed=["bucket"])
    assert reader.read("/data/x.png") == b"bytes"
    assert reader.read(f"{URL}/data/x.png") == b"bytes"
    assert reader.read("/stored") == b"bytes"
    assert asked[-1] == ("http://bucket:9/x.png", ""), "the token stays with Label Studio"
    seen = len(asked)
    for address in ("http://evil/x.png", "http://tool:8081/x.png", "//evil/x.png"):
        with pytest.raises(FetchError, match="is not Label Studio"):
            reader.read(address)
    assert len(asked) == seen, "nothing was asked"
    with pytest.raises(FetchError, match=r"leads to evil.*--allow-host evil"):
        reader.read("/away")
    with pytest.raises(FetchError, match="leads on more than"):
        reader.read("/round")
    for address in ("s3://bucket/x.png", "file:///etc/passwd"):
        with pytest.raises(FetchError, match="is not fetched"):
            reader.read(address)


def test_large_answers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.label_studio.fetch.MAX_BYTES", 10)
    with pytest.raises(FetchError, match="larger than"):
        studio(lambda _: httpx.Response(200, content=b"x" * 11)).read("/x")


def test_personal_tokens_are_exchanged_and_renewed() -> None:
    valid = iter(["first", "second"])
    state = {"now": ""}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/token/refresh":
            assert request.read() == b'{"refresh":"a.b.c"}'
            state["now"] = next(valid)
            return httpx.Response(200, json={"access": state["now"]})
        good = request.headers.get("authorization") == f"Bearer {state['now']}"
        return httpx.Response(200 if good else 401, content=b"bytes")

    reader = studio(answer, "a.b.c")
    assert reader.read("/x") == b"bytes"
    state["now"] = "expired"
    assert reader.read("/x") == b"bytes"
    assert state["now"] == "second"
    state["now"] = "expired"
    with pytest.raises((FetchError, StopIteration, RuntimeError)):
        reader.read("/x")
    with pytest.raises(FetchError, match="refuses the access token"):
        studio(lambda _: httpx.Response(401), "a.b.c").read("/x")


def test_labels_of_an_interface() -> None:
    text = """<View><Image name="photo" value="$url"/><BrushLabels name="b" toName="photo">
    <Label value="cat"/><Label value="Hund" predicted_values="wolf, dog"/><Label value="sky"/>
    </BrushLabels></View>"""
    found = read_interface(text, CLASSES)
    assert found.labels == {"cat": "cat", "dog": "Hund"}
    assert (found.controls.from_name, found.controls.to_name, found.controls.image_key) == (
        "b",
        "photo",
        "url",
    )
    for wrong, reason in [
        ("<View", "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "declares entities"),
        (
            '<View><RectangleLabels name="r" toName="i"/><Image name="i" value="$i"/></View>',
            "no <BrushLabels>",
        ),
        (text.replace("cat", "car").replace("dog", "doge"), r"no label of the interface \(car, Hund, sky\)"),
    ]:
        with pytest.raises(UserError, match=reason):
            read_interface(wrong, CLASSES)


def test_command_lines_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(*words: str, **environ: str) -> Backend:
        return make_backend(_parser().parse_args(list(words)), environ)

    with pytest.raises(UserError, match="lets everyone who reaches it start trainings"):
        made("http://s", "--train", "sh x.sh", "--host", "0.0.0.0")
    backend = made(
        "http://s", "--train", "sh 'a b'", "--host", "::", BASIC_AUTH_USER="a", BASIC_AUTH_PASS="b"
    )
    assert backend.trainer.command == ["sh", "a b"]
    assert backend.user == ("a", "b")
    with pytest.raises(UserError, match="set both"):
        made("http://s", BASIC_AUTH_USER="a")
    with pytest.raises(UserError, match="must be an address as http"):
        made("http://s", "--label-studio", "localhost:8080")
    assert main([str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err


def test_the_service_beside_it_can_be_away(png: bytes) -> None:
    arguments = _parser().parse_args(["http://127.0.0.1:9", "--label-studio", URL])
    backend = make_backend(arguments, {})
    backend.model._client._retries = 0
    answer = client_of(backend).get("/health")
    assert answer.status_code == 503
    assert "http://127.0.0.1:9" in answer.json()["detail"]
