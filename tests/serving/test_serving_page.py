"""The page at / in headless Chromium, driven over the DevTools protocol (no driver package needed)."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving_bundle import COLORS
from benchmarks.serving_server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


class Browser:
    """A tab of headless Chromium on a pipe: file descriptors 3 (to it) and 4 (from it)."""

    def __init__(self, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # numbers above those Chromium wants, so that neither pipe overwrites the other
        high = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (to_read, to_write)]

        def renumber() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe "
            f"--window-size=1200,900 --no-first-run --user-data-dir={profile} about:blank"
        )
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags.split()], pass_fds=(3, 4), preexec_fn=renumber,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for number in (to_read, to_write, *high):
            os.close(number)
        self._stream = os.fdopen(self._read, "rb")
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = self._stream.read1(1 << 20)
            assert data, "Chromium ended"
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        value: dict[str, Any] = json.loads(raw)
        return value

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._message()
            if reply.get("method") == "Network.requestWillBeSent":
                self.requests.append(reply["params"]["request"]["url"])
            elif reply.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(reply["params"]))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}; errors: {self.errors}"
            time.sleep(0.1)

    def pick_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def screenshot(self) -> Image.Image:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data)))

    def close(self) -> None:
        os.close(self._write)
        self._stream.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with Server({"PROTOSEG_MODEL": str(bundle)}) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as tab:
        yield tab


@pytest.fixture
def two_colors(tmp_path: Path) -> Path:
    """Left half red, right half blue."""
    pixels = np.empty((160, 240, 3), np.uint8)
    pixels[:, :120], pixels[:, 120:] = COLORS[1], COLORS[3]
    path = tmp_path / "two.png"
    Image.fromarray(pixels).save(path)
    return path


def pixel(browser: Browser, x: int, y: int) -> list[int]:
    script = f"[...document.getElementById('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
    return list(browser.run(script))


def test_upload_mask_legend_probe_and_screenshot(
    server: Server, browser: Browser, two_colors: Path, tmp_path: Path
) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.getElementById('model')?.textContent.includes('nearest-color')")
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.scores === '1'")
    assert browser.run("document.getElementById('error').hidden")
    legend = browser.run("[...document.querySelectorAll('#legend li')].map((e) => e.innerText)")
    assert len(legend) == 2
    assert all("50.0 %" in line for line in legend)
    # the image has the classes' own colours, so the blend changes nothing
    assert np.abs(np.array(pixel(browser, 60, 80)[:3]) - COLORS[1]).max() <= 2
    assert np.abs(np.array(pixel(browser, 180, 80)[:3]) - COLORS[3]).max() <= 2

    browser.run("document.getElementById('canvas').focus()")
    browser.key("ArrowLeft")
    text = browser.run("document.getElementById('probe').textContent")
    assert "red" in text
    assert "confidence 1.00" in text
    assert "agreement" in text

    shot = browser.screenshot().convert("RGB")
    box = browser.run("(({x, y, width, height}) => [x, y, width, height])"
                      "(document.getElementById('canvas').getBoundingClientRect())")  # fmt: skip
    at = (int(box[0] + box[2] * 0.8), int(box[1] + box[3] * 0.3))
    assert np.abs(np.array(shot.getpixel(at)) - COLORS[3]).max() <= 12
    browser.run("document.querySelector('input[value=agreement]').click()")
    browser.run("document.querySelectorAll('#legend input')[0].click()")
    assert browser.run("document.getElementById('curl').value").startswith("curl -F 'image=@two.png'")
    assert "infer" in browser.run("document.getElementById('timing').textContent")
    outside = [
        url for url in browser.requests if not url.startswith((server.url, "data:", "blob:", "about:"))
    ]
    assert outside == []
    assert browser.errors == []


def test_toggle_sample_and_readable_error(server: Server, browser: Browser, tmp_path: Path) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.run("document.querySelector('#samples button').click()")
    browser.until("document.getElementById('result').dataset.ready === '1'")
    before = browser.run("document.getElementById('canvas').toDataURL()")
    browser.run("document.querySelectorAll('#legend input')[0].click()")
    assert browser.run("document.getElementById('canvas').toDataURL()") != before
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    browser.pick_file("#file", text)
    browser.until("!document.getElementById('error').hidden")
    message = browser.run("document.getElementById('error').textContent")
    assert "unsupported_image" in message
    assert "request" in message


def test_fits_a_phone(server: Server, browser: Browser, two_colors: Path) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
    )
    browser.call("Page.navigate", url=server.url)
    browser.until("document.getElementById('model')?.textContent.includes('nearest-color')")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.ready === '1'")
    assert browser.run("document.documentElement.scrollWidth") <= 360
