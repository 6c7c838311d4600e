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

from benchmarks.nearest_color import COLORS
from benchmarks.serving_bundle import make_bundle
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
        # Tab moves the focus only with its Windows key code
        extra = {"windowsVirtualKeyCode": 9} if name == "Tab" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, **extra)

    def place(self, selector: str, across: float, down: float) -> tuple[int, int]:
        """Where on the screen a share of an element lies; scrolls to it."""
        script = (
            f"(() => {{ const e = document.querySelector('{selector}');"
            "e.scrollIntoView({block: 'nearest'});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        left, top, width, height = self.run(script)
        return int(left + across * width), int(top + down * height)

    def move_to(self, x: int, y: int) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

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


def shown_at(browser: Browser, across: float, down: float) -> Any:
    """Colour on the screen at a place of the picture."""
    # the picture fades in for some frames after the page was busy
    browser.until("getComputedStyle($('stage')).opacity === '1'")
    # before the screenshot, as it may scroll
    place = browser.place("#canvas", across, down)
    return np.array(browser.screenshot().convert("RGB").getpixel(place))


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
    assert pixel(browser, 60, 80) == [*COLORS[1], 255]
    assert pixel(browser, 180, 80) == [*COLORS[3], 255]

    browser.run("document.getElementById('canvas').focus()")
    browser.key("ArrowLeft")
    text = browser.run("document.getElementById('probe').textContent")
    assert "red" in text
    assert "confidence 1.00" in text
    assert "agreement" in text
    assert not browser.run("document.getElementById('marker').hidden")

    # the image has the classes' own colours, so the blend changes nothing
    for opacity in (0, 100):
        browser.run(f"$('opacity').value = {opacity}; $('opacity').dispatchEvent(new Event('input'))")
        assert np.abs(shown_at(browser, 0.8, 0.3) - COLORS[3]).max() <= 12
    assert browser.run("document.getElementById('curl').value").startswith("curl --data-binary '@two.png'")
    assert "infer" in browser.run("document.getElementById('timing').textContent")
    outside = [
        url for url in browser.requests if not url.startswith((server.url, "data:", "blob:", "about:"))
    ]
    assert outside == []
    assert browser.errors == []


def test_pointing_highlighting_and_comparing(server: Server, browser: Browser, two_colors: Path) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.scores === '1'")
    browser.move_to(*browser.place("#canvas", 0.25, 0.5))
    assert browser.run("$('tip').innerText").split() == ["red", "confidence", "1.00", "agreement", "1.00"]
    # a class is alone while the pointer is on its row
    browser.move_to(*browser.place("#legend li:nth-child(2) .name", 0.1, 0.5))
    assert browser.run("$('tip').hidden")
    assert sorted(pixel(browser, x, 80)[3] for x in (60, 180)) == [40, 255]
    browser.move_to(5, 5)
    assert [pixel(browser, x, 80)[3] for x in (60, 180)] == [255, 255]
    browser.run("$('none').click()")
    assert [pixel(browser, x, 80)[3] for x in (60, 180)] == [0, 0]
    browser.run("$('all').click()")
    browser.run("$('compare').focus()")
    held = "getComputedStyle($('canvas')).opacity"
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=" ", code="Space")
    assert browser.run(held) == "0"
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=" ", code="Space")
    assert browser.run(held) == "0.6"
    assert browser.errors == []


def test_novelty_is_a_layer_where_the_bundle_tells_it(
    server: Server, browser: Browser, two_colors: Path, tmp_path: Path
) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    assert browser.run("$('novelty-layer').hidden && getComputedStyle($('novelty-layer')).display === 'none'")
    outputs = ("labels", "confidence", "agreement", "novelty")
    novel = make_bundle(tmp_path / "novel", outputs=outputs)
    pixels = np.asarray(Image.open(two_colors)).copy()
    pixels[:40] = (165, 150, 145)  # as far from one colour of the network as from four
    Image.fromarray(pixels).save(two_colors)
    with Server({"PROTOSEG_MODEL": str(novel)}) as running:
        running.wait_ready()
        browser.call("Page.navigate", url=running.url)
        browser.until("document.querySelectorAll('#samples button').length === 1")
        browser.pick_file("#file", two_colors)
        browser.until("document.getElementById('result').dataset.scores === '1'")
        browser.run("document.querySelector('input[value=novelty]').click()")
        assert pixel(browser, 60, 10)[3] > 2 * pixel(browser, 60, 120)[3]
        assert "novel" in browser.run("$('layer-note').textContent")
        assert "Novel" in browser.run("$('facts').innerText")
        browser.move_to(*browser.place("#canvas", 0.25, 0.5))
        assert "novelty 0.0" in browser.run("$('tip').innerText").replace("\n", " ")
    assert browser.errors == []


def test_everything_can_be_reached_by_keyboard(server: Server, browser: Browser, two_colors: Path) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.scores === '1'")
    reached = []
    for _ in range(18):
        browser.key("Tab")
        script = "(({id, name, dataset, type}) => id || dataset.output || name || type)"
        reached.append(browser.run(f"{script}(document.activeElement)"))
    wanted = "file canvas layer opacity compare all none checkbox mask overlay json copy curl"
    for name in wanted.split():
        assert name in reached, reached


def test_downloads_are_what_the_page_shows(
    server: Server, browser: Browser, two_colors: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "downloads"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.scores === '1'")
    # a refused file must not take the place of the one that is shown
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    browser.pick_file("#file", text)
    browser.until("!document.getElementById('error').hidden")
    for output, name in (("mask", "two.mask.png"), ("overlay", "two.overlay.jpg"), ("json", "two.json.json")):
        browser.run(f"document.querySelector('button[data-output={output}]').click()")
        end = time.monotonic() + 30
        while not (folder / name).exists():
            assert time.monotonic() < end, sorted(folder.glob("*"))
            time.sleep(0.1)
    with Image.open(folder / "two.mask.png") as mask:
        assert sorted(np.unique(np.asarray(mask)).tolist()) == [1, 3]
    assert json.loads((folder / "two.json.json").read_text())["width"] == 240


def test_a_key_is_asked_for_and_large_files_are_not_sent(
    bundle: Path, browser: Browser, two_colors: Path, tmp_path: Path, helpers: Any
) -> None:
    settings = {"PROTOSEG_API_KEYS": helpers.sha256("open"), "PROTOSEG_MAX_BODY": "20KiB"}
    with Server({"PROTOSEG_MODEL": str(bundle), **settings}) as running:
        running.wait_ready()
        browser.call("Page.navigate", url=running.url)
        browser.until("document.getElementById('key-row')?.hidden === false")
        # the message comes after the row: its text is in the answer's body
        browser.until("$('error').textContent.includes('API key')")
        browser.run("$('key').value = 'open'; $('key-row').requestSubmit()")
        browser.until("document.querySelectorAll('#samples button').length === 1")
        browser.pick_file("#file", two_colors)
        # the score maps too: the page sends the small file again for each, after the mask is shown
        browser.until("document.getElementById('result').dataset.scores === '1'")
        assert "$PROTOSEG_API_KEY" in browser.run("$('curl').value")
        large = tmp_path / "large.png"
        large.write_bytes(bytes(30_000))
        browser.pick_file("#file", large)
        browser.until("!document.getElementById('error').hidden")
        assert "large.png" in browser.run("$('error').textContent")
        assert "30 KiB; this server takes 20 KiB" in browser.run("$('error').textContent")
        sent = [url.partition("?output=")[2] for url in browser.requests if "segment" in url]
        # those of the small file, which also shows that requests are seen at all
        assert sent == ["rle", "confidence", "agreement"]


def test_toggle_sample_and_readable_error(server: Server, browser: Browser, tmp_path: Path) -> None:
    browser.call("Page.navigate", url=server.url)
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.run("document.querySelector('#samples button').click()")
    browser.until("document.getElementById('result').dataset.ready === '1'")
    before = browser.run("document.getElementById('canvas').toDataURL()")
    browser.run("document.querySelectorAll('#legend input')[0].click()")
    assert browser.run("document.getElementById('canvas').toDataURL()") != before
    browser.run("document.querySelectorAll('#legend input')[0].click()")
    browser.until("document.getElementById('result').dataset.scores === '1'")
    assert browser.run("document.getElementById('canvas').toDataURL()") == before
    # a score layer is strong where the network is unsure, and the picture under it is grey
    for name, word in (("confidence", "unsure"), ("agreement", "agree")):
        browser.run(f"document.querySelector('input[value={name}]').click()")
        values = browser.run("[...$('canvas').getContext('2d').getImageData(0, 0, 128, 96).data]")
        alpha = np.array(values).reshape(96, 128, 4)[..., 3]
        assert alpha.min() < 30
        assert alpha.max() > 60
        assert word in browser.run("$('layer-note').textContent")
        assert "grayscale" in browser.run("getComputedStyle($('photo')).filter")
    text = tmp_path / "notes.png"
    text.write_text("no image at all")
    browser.pick_file("#file", text)
    browser.until("!document.getElementById('error').hidden")
    message = browser.run("document.getElementById('error').textContent")
    assert "unsupported_image" in message
    assert "request" in message
    assert message.strip().startswith("notes.png")
    browser.run("document.getElementById('error-close').click()")
    assert browser.run("document.getElementById('error').hidden")


def test_fits_a_phone(server: Server, browser: Browser, two_colors: Path) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
    )
    browser.call("Page.navigate", url=server.url)
    # everything that takes width has to be there
    browser.until("document.querySelectorAll('#samples button').length === 1")
    browser.pick_file("#file", two_colors)
    browser.until("document.getElementById('result').dataset.scores === '1'")
    assert browser.run("document.documentElement.scrollWidth") <= 360


def test_the_pointer_shows_what_a_pixel_resembles(
    browser: Browser, two_colors: Path, tmp_path: Path, helpers: Any
) -> None:
    folder = make_bundle(tmp_path / "bundle", explains=True)
    # with a key, which an image's source could not send
    settings = {"PROTOSEG_API_KEYS": helpers.sha256("open")}
    with Server({"PROTOSEG_MODEL": str(folder), **settings}) as running:
        running.wait_ready()
        browser.call("Page.navigate", url=running.url)
        browser.until("document.getElementById('key-row')?.hidden === false")
        browser.run("$('key').value = 'open'; $('key-row').requestSubmit()")
        browser.until("document.querySelectorAll('#samples button').length === 1")
        browser.pick_file("#file", two_colors)
        browser.until("document.getElementById('result').dataset.reasons === '1'")
        for across, name, color in ((0.25, "red", COLORS[1]), (0.75, "blue", COLORS[3])):
            browser.move_to(*browser.place("#canvas", across, 0.6))
            text = browser.run("$('tip').innerText")
            assert f"like {name} 0" in text
            assert ", then " in text
            browser.until("document.querySelector('#tip img')?.naturalWidth === 64")
            # the patches are on the screen, in the colour of their class
            place = browser.place("#tip img", 0.25, 0.5)
            assert np.abs(np.array(browser.screenshot().convert("RGB").getpixel(place)) - color).max() <= 16
        strips = [url for url in browser.requests if "/v1/prototypes/" in url]
        assert len(strips) == 2, "each prototype's patches are asked for once"
        # the keyboard's probe says it, too
        browser.run("document.getElementById('canvas').focus()")
        browser.key("ArrowLeft")
        assert "like blue 0" in browser.run("document.getElementById('probe').textContent")
        assert browser.errors == []
