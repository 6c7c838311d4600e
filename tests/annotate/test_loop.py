"""The closed loop of docs/labelling.md, by the commands that are printed there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import PROJECT_ROOT, quiet_environment, short_quickstart

from benchmarks.serving_server import free_port
from protoseg.annotate.formats.label_studio import encode_brush
from protoseg.data.synthetic import main as write_scenes
from protoseg.manifest import read_manifest

STEPS = dict(re.findall(
    r"<!-- loop:(\w+) -->\n```bash\n(.*?)```", (PROJECT_ROOT / "docs" / "labelling.md").read_text(), re.DOTALL
))  # fmt: skip


class Folder:
    """A working folder in which the page's commands run."""

    def __init__(self, path: Path) -> None:
        self.path, self.port = path, free_port()
        (path / "bin").mkdir()
        program = path / "bin" / "protoseg"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m protoseg "$@"\n')
        program.chmod(0o755)
        self.environ = quiet_environment() | {
            "PATH": f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}", "BENTOML_HOME": str(path / "bentoml"),
            "ACCELERATE_USE_CPU": "true", "BENTOML_DO_NOT_TRACK": "True",
        }  # fmt: skip

    def command(self, step: str) -> list[str]:
        # a network of a few steps takes all images for near duplicates
        text = STEPS[step].replace("-n 6", "-n 6 --min-distance 0").replace("3000", str(self.port))
        return ["bash", "-ec", text]

    def run(self, step: str) -> str:
        done = subprocess.run(
            self.command(step), cwd=self.path, env=self.environ, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{step}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def classes(self) -> list[str]:
        return (self.path / "todo" / "label-studio" / "classes.txt").read_text().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Scenes, and a first run on few of them."""
    data = tmp_path / "data"
    write_scenes([str(data), "--num-labeled", "18", "--num-unlabeled", "1", "--num-val", "6",
                  "--height", "64", "--width", "80"])  # fmt: skip
    lines = (data / "labeled.txt").read_text().splitlines(keepends=True)
    (data / "labeled.txt").write_text("".join(lines[:6]))
    # their masks are known to the person only
    (data / "unlabeled.txt").write_text("".join(f"{line.split()[0]}\n" for line in lines[6:]))
    raw = short_quickstart()
    names = (data / "classes.txt").read_text().splitlines()
    lists = {name: f"{name}.txt" for name in ("labeled", "unlabeled", "val")}
    raw["data"] = {"kind": "files", "root": str(data), "classes": names, **lists}
    raw["run"] = {"name": "first"}
    raw["train"] |= {"save_every": 60, "eval_every": 60}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(raw))
    made = Folder(tmp_path)
    subprocess.run(
        ["bash", "-ec", "protoseg train --config first.yaml"], cwd=tmp_path, env=made.environ, check=True,
        capture_output=True,
    )  # fmt: skip
    return made


def label(folder: Folder) -> int:
    """What a person does: the true mask of each task, as Label Studio exports it; how many tasks."""
    truth = {}
    for image in (folder.path / "data" / "images").iterdir():
        truth[hashlib.sha256(image.read_bytes()).hexdigest()[:32]] = image.name
    names = folder.classes()
    tasks = json.loads((folder.path / "todo" / "label-studio" / "tasks.json").read_text())
    for number, task in enumerate(tasks, start=1):
        stem = task["data"]["name"].rpartition(".")[0]
        with Image.open(folder.path / "data" / "masks" / truth[stem]) as picture:
            mask = np.array(picture)
        drafted = task["predictions"][0]["result"]
        assert all(item["original_width"] == mask.shape[1] for item in drafted)
        regions = [
            {
                "id": f"by-hand-{index}", "type": "brushlabels", "from_name": "label", "to_name": "image",
                "original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(mask == index), "brushlabels": [names[index]]},
            }
            for index in np.unique(mask).tolist() if 0 < index < 255
        ]  # fmt: skip
        task |= {"id": number, "annotations": [{"id": number, "result": regions, "was_cancelled": False}]}
    (folder.path / "labels.json").write_text(json.dumps(tasks))
    return len(tasks)


def wait_until_ready(url: str, service: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert service.poll() is None, "the service has ended"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("the service is not ready")


@pytest.mark.slow
def test_from_hard_samples_to_a_swapped_network_without_a_lost_request(folder: Folder) -> None:
    assert list(STEPS) == ["export", "serve", "suggest", "convert", "train", "swap"]
    folder.run("export")
    url = f"http://127.0.0.1:{folder.port}"
    names = (folder.path / "data" / "unlabeled.txt").read_text().splitlines()
    photos = [folder.path / "data" / name for name in names]
    answers: Counter[tuple[int | str, str]] = Counter()
    stop = threading.Event()

    def send(image: Path) -> None:
        try:
            answer = httpx.post(f"{url}/v1/segment", content=image.read_bytes(), timeout=120)
            answers[answer.status_code, answer.headers.get("x-model-name", "")] += 1
        except httpx.HTTPError as error:
            answers[repr(error), ""] += 1

    def send_on() -> None:
        while not stop.is_set():
            send(photos[0])
            stop.wait(0.1)

    with (folder.path / "service.log").open("wb") as log:
        service = subprocess.Popen(folder.command("serve"), cwd=folder.path, env=folder.environ, stdout=log,
                                   stderr=log, start_new_session=True)  # fmt: skip
        try:
            wait_until_ready(url, service)
            for photo in photos:
                send(photo)
            kept = [path for path in (folder.path / "data" / "hard").iterdir() if path.suffix == ".json"]
            assert len(kept) == len(photos), "so short a training doubts all of them"
            client = threading.Thread(target=send_on)
            client.start()
            folder.run("suggest")
            labelled = label(folder)
            assert labelled == 6
            folder.run("convert")
            lines = (folder.path / "data" / "labeled_2.txt").read_text().splitlines()
            assert len(lines) == 6 + labelled
            folder.run("train")
            told = folder.run("swap")
            assert '"second"' in told.splitlines()[-1], told
            time.sleep(2)
            stop.set()
            client.join()
        finally:
            stop.set()
            os.killpg(service.pid, signal.SIGTERM)
            service.wait(60)
    assert {status for status, _ in answers} == {200}, answers
    assert answers[200, "second"] > 0
    assert answers[200, "first"] > len(photos)
    config = json.loads((folder.path / "runs" / "second" / "checkpoint" / "config.json").read_text())
    assert [item["name"] for item in config["classes"]] == folder.classes()
    manifest = read_manifest(folder.path / "served")
    assert {artifact.parity.status for artifact in manifest.files} == {"passed"}
