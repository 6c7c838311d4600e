"""Real ``bentoml serve`` processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from benchmarks.serving_server import Server
from serving.client import main as client_main


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def segment(server: Server, image: bytes, timeout: float = 30.0) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/segment", content=image, timeout=timeout)


def test_starts_answers_and_stops(bundle: Path, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png)
    with Server({"PROTOSEG_MODEL": str(bundle)}) as server:
        server.wait_ready()
        assert segment(server, png).status_code == 200
        args = [str(tmp_path / "image.png"), "-o", str(tmp_path / "out"), "--url", server.url]
        assert client_main(args) == 0
        assert (tmp_path / "out" / "image.png").read_bytes()[:4] == b"\x89PNG"
        (worker,) = server.workers()
        maps = Path(f"/proc/{worker.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "corrupt", "unproven", "tampered", "setting", "none"])
def test_what_cannot_be_served_ends_with_one_line(bundle: Path, tmp_path: Path, kind: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    environ = {"PROTOSEG_MODEL": str(copy)}
    manifest = copy / "manifest.json"
    expected = {
        "missing": "no manifest.json", "corrupt": "cannot be read",
        "unproven": "parity of model.onnx is not_run",
        "tampered": "does not match the manifest", "setting": "PROTOSEG_QUEUE", "none": "no bundle found",
    }[kind]  # fmt: skip
    if kind == "missing":
        manifest.unlink()
    elif kind == "corrupt":
        manifest.write_text(manifest.read_text()[:-10])
    elif kind == "unproven":
        manifest.write_text(manifest.read_text().replace('"status": "passed"', '"status": "not_run"'))
    elif kind == "tampered":
        with (copy / "model.onnx").open("ab") as stream:
            stream.write(b"\0")
    elif kind == "setting":
        environ["PROTOSEG_QUEUE"] = "long"
    elif any(Path(__file__).parents[2].glob("runs/*/bundle/manifest.json")):
        pytest.skip("the project has a bundle of its own")
    else:
        environ = {}
    with Server(environ) as server:
        assert server.wait_end() == 1
        lines = [line for line in server.text().splitlines() if "error: " in line.lower()]
        assert len(lines) == 1, server.text()
        assert expected in lines[0]
        assert "Traceback" not in server.text()


@pytest.mark.slow
def test_port_in_use_ends_the_command(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with Server({"PROTOSEG_MODEL": str(bundle)}, port=port) as server:
            assert server.wait_end() == 1
            assert f"cannot listen on 127.0.0.1:{port}" in server.text()
            assert "Traceback" not in server.text()


@pytest.fixture(scope="module")
def big() -> bytes:
    """An image that takes a while: 12 tiles."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sample_image(1200, 1600)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("slow") / "bundle", width=24)


@pytest.mark.slow
def test_sigterm_finishes_requests_in_flight(slow_bundle: Path, big: bytes) -> None:
    with Server({"PROTOSEG_MODEL": str(slow_bundle), "PROTOSEG_DRAIN": "1"}) as server:
        server.wait_ready()
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(segment(server, big).status_code))
        thread.start()
        until(lambda: "protoseg_in_flight 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert segment(server, big).json()["error"]["code"] == "draining"
        thread.join(60)
        assert answers == [200]
        assert server.wait_end() == 0


@pytest.mark.slow
def test_killed_workers_come_back_and_killed_parents_take_their_workers(bundle: Path, png: bytes) -> None:
    with Server({"PROTOSEG_MODEL": str(bundle), "PROTOSEG_WORKERS": "2"}) as server:
        server.wait_ready()
        until(lambda: len(server.workers()) == 2)
        victim, _ = server.workers()
        until(lambda: "protoseg_in_flight 0.0" in httpx.get(f"{server.url}/metrics").text)
        victim.kill()
        statuses = Counter()
        for _ in range(20):
            try:
                statuses[segment(server, png).status_code] += 1
            except httpx.HTTPError:
                statuses[0] += 1
        assert statuses[200] >= 18
        until(lambda: len(server.workers()) == 2)
        until(lambda: victim.pid not in [w.pid for w in server.workers()])
        text = httpx.get(f"{server.url}/metrics").text
        assert "protoseg_in_flight 0.0" in text
        workers = server.workers()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
        with pytest.raises(httpx.HTTPError):
            segment(server, png, timeout=2)


@pytest.mark.slow
def test_two_workers_share_metrics(bundle: Path, png: bytes) -> None:
    with Server({"PROTOSEG_MODEL": str(bundle), "PROTOSEG_WORKERS": "2"}) as server:
        server.wait_ready()
        pids = set()
        for _ in range(40):
            assert segment(server, png).status_code == 200
        for line in server.text().splitlines():
            pids.add(line.split("[entry_service:protoseg:")[1][0] if "[entry_service:" in line else "")
        assert {"1", "2"} <= pids
        text = httpx.get(f"{server.url}/metrics").text
        assert 'protoseg_requests_total{route="/v1/segment",status="200"} 40.0' in text


@pytest.mark.slow
@pytest.mark.parametrize("way", ["signal", "http"])
def test_reload_under_load_loses_nothing(tmp_path: Path, png: bytes, way: str, helpers: Any) -> None:
    folder = make_bundle(tmp_path / "bundle", version="1")
    environ = {
        "PROTOSEG_MODEL": str(folder), "PROTOSEG_WORKERS": "2",
        "PROTOSEG_ADMIN_KEYS": helpers.sha256("boss"),
    }  # fmt: skip
    with Server(environ) as server:
        server.wait_ready()
        until(lambda: len(server.workers()) == 2)
        time.sleep(2)
        seen: Counter[tuple[int, str]] = Counter()
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                response = segment(server, png)
                seen[response.status_code, response.headers.get("x-model-version", "")] += 1

        def reload() -> int:
            if way == "signal":
                server.signal(signal.SIGHUP)
                return 200
            return httpx.post(
                f"{server.url}/v1/reload", headers={"x-api-key": "boss"}, timeout=30
            ).status_code

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        manifest = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(manifest.replace('"passed"', '"failed"'))
        assert reload() == (200 if way == "signal" else 422)
        until(lambda: "reload refused" in server.text())
        time.sleep(0.5)
        assert {version for _, version in seen} == {"1"}
        make_bundle(folder, version="2")
        assert reload() == 200
        until(lambda: server.text().count("reloaded nearest-color 2") == 2)
        seen.clear()
        until(lambda: sum(seen.values()) > 10)
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in seen} == {200}
        assert seen[200, "2"] >= sum(seen.values()) - 2
        # a worker started anew serves what its siblings serve
        server.workers()[0].kill()
        until(lambda: len(server.workers()) == 2)


def raw(server: Server, data: bytes, pause: float = 0.0) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    peer.sendall(data)
    time.sleep(pause)
    return peer


def send_for_ever(peer: socket.socket, data: bytes) -> None:
    for _ in range(10_000):
        peer.sendall(data)
        time.sleep(0.0001)


@pytest.mark.slow
def test_slow_and_lying_peers(bundle: Path, png: bytes) -> None:
    environ = {
        "PROTOSEG_MODEL": str(bundle), "PROTOSEG_HEADER_TIMEOUT": "1", "PROTOSEG_BODY_TIMEOUT": "1",
        "PROTOSEG_WRITE_TIMEOUT": "1", "PROTOSEG_CONNECTIONS": "20",
    }  # fmt: skip
    with Server(environ) as server:
        server.wait_ready()
        # a request head that never ends is closed without an answer
        slow = raw(server, b"POST /v1/segment HTTP/1.1\r\nHost: x\r\n")
        assert slow.recv(100) == b""
        # so is a silent connection and an endless head
        assert raw(server, b"").recv(100) == b""
        endless = raw(server, b"")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_for_ever(endless, b"X-Header: " + b"x" * 1000 + b"\r\n")
        # a body that stalls gets 408, a body shorter than promised too
        for promised in (b"5", b"1000000"):
            stalled = raw(
                server, b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: " + promised + b"\r\n\r\nab"
            )
            assert b"408" in stalled.recv(100)
        # chunks without end are cut at the limit
        chunked = raw(server, b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = b""
        try:
            for _ in range(100):
                chunked.sendall(b"80000\r\n" + bytes(0x80000) + b"\r\n")
        except OSError:
            pass
        try:
            answer = chunked.recv(100)
        except ConnectionResetError:
            answer = b"413"
        assert b"413" in answer
        # more connections than allowed are closed at once, the others go on
        many = [raw(server, b"") for _ in range(40)]
        assert sum(peer.recv(1) == b"" for peer in many[-10:]) == 10
        for peer in many:
            peer.close()
        until(lambda: segment(server, png).status_code == 200, 10)


@pytest.mark.slow
def test_bento_serves_from_any_folder(bundle: Path, png: bytes, tmp_path: Path) -> None:
    """``bentoml build`` on a copy of the project, with a bundle inside."""
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    project = tmp_path / "project"
    project.mkdir()
    for name in ("protoseg", "export", "serving"):
        shutil.copytree(root / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bentofile.yaml", ".bentoignore"):
        shutil.copy(root / name, project / name)
    shutil.copytree(bundle, project / "runs" / "demo" / "bundle")
    (project / "runs" / "demo" / "checkpoint").mkdir()
    (project / "runs" / "demo" / "checkpoint" / "model.safetensors").write_bytes(b"x")
    home = tmp_path / "home"
    environ = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    environ.pop("PYTHONPATH", None)
    build = [sys.executable, "-m", "bentoml", "build", "--output", "tag", str(project)]
    done = subprocess.run(build, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tag = done.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    (source,) = home.glob("bentos/protoseg/*/src")
    files = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert "runs/demo/bundle/model.onnx" in files
    assert "serving/demo/index.html" in files
    assert not any("checkpoint" in name or name.startswith("tests") for name in files)
    settings = {"BENTOML_HOME": str(home), "PYTHONPATH": ""}
    with Server(settings, target=tag, cwd=tmp_path) as server:
        server.wait_ready()
        assert segment(server, png).status_code == 200
        assert httpx.get(f"{server.url}/v1/model").json()["name"] == "nearest-color"
