"""The package as people install it: away from the checkout, in an empty folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny import PROJECT_ROOT, short_quickstart

from benchmarks.serving_server import free_port

pytestmark = pytest.mark.slow
PACKAGES = ("protoseg", "export", "serving")


def few_steps() -> list[str]:
    """Settings that make a short training of the quickstart, as overrides."""
    raw = short_quickstart()
    raw["data"] = {f"synthetic.{key}": value for key, value in raw["data"]["synthetic"].items()}
    return [f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for section, values in raw.items() for key, value in values.items()]  # fmt: skip


def check_call(command, cwd, **environ):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "PROTOSEG_", "ACCELERATE_"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**kept, "OMP_NUM_THREADS": "1", **environ}, text=True,
        capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source archive, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("build")
    for name in (*PACKAGES, "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT_ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, folder / name)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_x.py").write_text("")
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    check_call([sys.executable, "-c", code], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return wheel, archive


def shipped() -> set[str]:
    """What must be in the wheel, by its name there."""
    kinds = ("*.py", "*.pyi", "py.typed")
    code = {path for name in PACKAGES for kind in kinds for path in (PROJECT_ROOT / name).rglob(kind)}
    data = [*(PROJECT_ROOT / "serving" / "demo").iterdir(), *(PROJECT_ROOT / "serving").glob("*.txt")]
    names = {path.relative_to(PROJECT_ROOT).as_posix() for path in (*code, *data)}
    configs = (PROJECT_ROOT / "configs").rglob("*.yaml")
    return names | {f"protoseg/{path.relative_to(PROJECT_ROOT).as_posix()}" for path in configs}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    assert shipped() <= names
    assert not names - shipped()
    metadata = next(n for n in zipfile.ZipFile(built[0]).namelist() if n.endswith("entry_points.txt"))
    assert "protoseg = protoseg.cli.main:main" in zipfile.ZipFile(built[0]).read(metadata).decode()


def test_a_wheel_can_be_made_of_the_source_archive(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    code = "from setuptools import build_meta as b; b.build_wheel('dist')"
    check_call([sys.executable, "-c", code], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    assert set(zipfile.ZipFile(wheel).namelist()) == set(zipfile.ZipFile(built[0]).namelist())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """``bin`` of an environment with the wheel, which borrows the dependencies and not the checkout."""
    folder = tmp_path_factory.mktemp("venv")
    check_call([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    check_call([*pip, built[0]], folder)
    # paths in a .pth file of a folder that another .pth names are not read: the checkout stays away
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_from_nothing_to_an_answer(installed, tmp_path):
    home = {"HOME": str(tmp_path / "home"), "BENTOML_HOME": str(tmp_path / "bentoml")}
    work = tmp_path / "work"
    work.mkdir()

    def run(*words):
        return check_call([installed / "protoseg", *words], work, **home)

    where = check_call([installed / "python", "-c", "import protoseg, sys; print(protoseg.__file__)"], work)
    assert where.startswith(str(installed.parent))
    assert run("--version").startswith("protoseg ")
    run("train", "--config", "quickstart", *few_steps())
    assert sorted(path.name for path in work.iterdir()) == ["runs"], "nothing else is left in the folder"
    run("scenes", "scenes", "--num-unlabeled", "4", "--num-val", "4")
    run("predict", "runs/quickstart", "scenes/images", "-o", "predictions")
    run("export", "runs/quickstart")
    assert "next: protoseg check --config my.yaml" in run("init", "scenes")
    port = free_port()
    with (tmp_path / "serve.log").open("wb") as log:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PROTOSEG_")}
        process = subprocess.Popen(
            [str(installed / "protoseg"), "serve", "--port", str(port), "ui=true"],
            cwd=work, env={**kept, **home}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://localhost:{port}"
        transport = httpx.HTTPTransport(retries=0)
        image = (work / "scenes" / "images" / "val_0000.png").read_bytes()
        with httpx.Client(transport=transport, base_url=url, timeout=30) as client:
            wait(process, client, tmp_path / "serve.log")
            assert "<html" in client.get("/").text
            reply = client.post("/v1/segment", files={"image": image})
        assert reply.status_code == 200
        offline = np.array(Image.open(work / "predictions" / "masks" / "val_0000.png"))
        assert np.array_equal(np.array(Image.open(io.BytesIO(reply.content))), offline)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    said = (tmp_path / "serve.log").read_text()
    assert f"serving {work / 'runs/quickstart/bundle'} at {url}" in said
    assert f"curl -F image=@photo.jpg {url}/v1/segment" in said


def wait(process, client, log, seconds=240):
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())
