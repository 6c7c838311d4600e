"""A cluster of this machine with two workers, of which one is killed: every image once, nothing lost."""

import json
import subprocess
import sys
import tarfile
import time

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny import photo, quiet_environment, tiny_run

from protoseg.distributed.__main__ import main

IMAGES = 60


@pytest.fixture
def place(tmp_path):
    tiny_run(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        Image.fromarray(photo(number)).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path


def workers(parent):
    return [p for p in psutil.Process(parent).children(recursive=True) if "MapWorker" in p.name()
            or any("MapWorker" in word for word in p.cmdline()[:1])]  # fmt: skip


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_image(place):
    pytest.importorskip("ray")
    command = [
        sys.executable, "-m", "protoseg.distributed", str(place / "run"), str(place / "images"), "-o",
        str(place / "out"), "--ray", "local", "--workers", "2", "--shard-size", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=quiet_environment(), stderr=subprocess.PIPE, text=True)
    killed = None
    while process.poll() is None and killed is None:
        if len(list((place / "out").glob("masks-*.json"))) >= 2 and (found := workers(process.pid)):
            killed = found[0].pid
            found[0].kill()
        time.sleep(0.02)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert killed is not None
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["images"] == IMAGES
    names = []
    for told in manifest["shards"]:
        assert told["failed"] == []
        with tarfile.open(place / "out" / told["file"]) as tar:
            names += [name for name in tar.getnames() if name.endswith(".png")]
    assert sorted(names) == [f"{number:02d}.png" for number in range(IMAGES)]

    # the masks are those of one process; another call finds everything done
    done = subprocess.run(
        [sys.executable, "-m", "protoseg.predict", str(place / "run"), str(place / "images"), "-o",
         str(place / "alone"), "--no-overlay", "--no-confidence", "--no-disagreement"],
        env=quiet_environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"{IMAGES} of {IMAGES} images" in done.stdout
    with tarfile.open(place / "out" / manifest["shards"][0]["file"]) as tar:
        mask = np.asarray(Image.open(tar.extractfile("00.png")))
    assert np.array_equal(mask, np.asarray(Image.open(place / "alone" / "masks" / "00.png")))
    again = subprocess.run(command, env=quiet_environment(), check=True, capture_output=True, text=True)
    assert "note: 30 of 30 shards are there already" in again.stderr


def test_without_ray_the_cure_is_told(place, capsys, monkeypatch):
    monkeypatch.setattr("protoseg.distributed.__main__.find_spec", lambda name: None)
    assert main([str(place / "run"), str(place / "images"), "-o", str(place / "out"), "--ray", "local"]) == 1
    assert 'pip install "protoseg[ray]"' in capsys.readouterr().err
    assert not (place / "out").exists()
