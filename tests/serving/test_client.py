from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

from serving.client import find_images, main
from serving.http_client import Client, ClientError

Answer = Callable[[httpx.Request], httpx.Response]


def error(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"code": code, "message": f"about {code}", "request_id": "r1"}}
    return httpx.Response(status, json=body, headers=headers)


def make(answers: list[httpx.Response | Exception], waits: list[float], retries: int = 5) -> Client:
    queue = iter(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = next(queue)
        if isinstance(answer, Exception):
            raise answer
        answer.request = request
        return answer

    transport = httpx.MockTransport(handle)
    return Client("http://test", transport=transport, sleep=waits.append, retries=retries)


def test_waits_as_long_as_the_server_asks() -> None:
    waits: list[float] = []
    refused = [error(503, "overloaded", **{"retry-after": "3"}), error(429, "rate_limited")]
    with make([*refused, httpx.Response(200, content=b"png")], waits) as client:
        assert client.segment(b"image") == b"png"
    assert waits == [3.0, 0.5]


def test_lost_connections_are_tried_again() -> None:
    waits: list[float] = []
    lost = [httpx.ConnectError("refused"), httpx.RemoteProtocolError("cut")]
    with make([*lost, httpx.Response(200, json={"classes": []})], waits) as client:
        assert client.describe(b"image") == {"classes": []}
    assert waits == [0.25, 0.5]


def test_errors_are_typed() -> None:
    with make([error(415, "unsupported_image")], []) as client, pytest.raises(ClientError) as caught:
        client.segment(b"text")
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (
        415,
        "unsupported_image",
        "r1",
    )
    with make([httpx.Response(500, text="oops")], []) as client, pytest.raises(ClientError, match="oops"):
        client.model()


def test_gives_up() -> None:
    waits: list[float] = []
    with make([error(503, "overloaded")] * 3, waits, retries=2) as client, pytest.raises(ClientError):
        client.segment(b"image")
    assert len(waits) == 2
    with make([httpx.ReadTimeout("slow")], []) as client, pytest.raises(ClientError) as caught:
        client.segment(b"image")
    assert caught.value.code == "timeout"


def test_sends_key_and_parameters() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"x")

    with Client("http://test", api_key="k", transport=httpx.MockTransport(handle)) as client:
        client.segment(b"image", "overlay", alpha="0.3")
    assert seen[0].headers["authorization"] == "Bearer k"
    assert dict(seen[0].url.params) == {"output": "overlay", "alpha": "0.3"}
    assert seen[0].content == b"image"


def test_finds_images_in_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/x.PNG", "b.jpg", "c.jfif", "notes.txt", "array.npy"):
        (tmp_path / name).write_bytes(b"")
    assert find_images([str(tmp_path)]) == [tmp_path / "a" / "x.PNG", tmp_path / "b.jpg", tmp_path / "c.jfif"]
    with pytest.raises(FileNotFoundError):
        find_images([str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["absent.png", "-o", "out"], "does not exist"),
        ([".", "-o", "out"], "no images"),
        (["x/a.png", "y/a.jpg", "-o", "out"], "would both become"),
        (["x/a.png", "-o", "out", "--concurrency", "0"], "--concurrency"),
    ],
)
def test_command_errors_are_one_line(
    args: list[str], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if says != "no images":
        for name in ("x/a.png", "y/a.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
    assert main(args) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert says in message
    assert not (tmp_path / "out").exists()


def test_unreachable_server_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    code = main([str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--url", "not a url"])
    assert code == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_interrupting_sends_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Path] = []

    def segment(self: Client, image: Path, *args: object, **parameters: object) -> bytes:
        sent.append(image)
        time.sleep(0.02)
        return b"mask"

    def interrupted(futures: dict[Future[None], Path]) -> Iterator[Future[None]]:
        first = next(iter(futures))
        first.result()
        yield first
        raise KeyboardInterrupt

    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    monkeypatch.setattr(Client, "segment", segment)
    monkeypatch.setattr("serving.client.as_completed", interrupted)
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "--concurrency", "1"]) == 130
    assert 1 <= len(sent) < 100
    assert "of 200 results are in" in capsys.readouterr().err
