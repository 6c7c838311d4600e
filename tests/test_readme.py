"""README and docs say only what works: set-up lines, named modules, files, and the commands themselves."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from tiny import PROJECT_ROOT, quiet_environment, short_quickstart

README = (PROJECT_ROOT / "README.md").read_text()
ROOT_PAGES = [PROJECT_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCS = [*ROOT_PAGES, *sorted((PROJECT_ROOT / "docs").glob("*.md"))]


def blocks(text, marker):
    return re.findall(rf"<!-- {marker} -->\n```bash\n(.*?)```", text, re.S)


def test_set_up_is_two_commands_of_one_line():
    for name in ("main", "tests"):
        (block,) = blocks(README, f"setup: {name}")
        assert len(block.strip().splitlines()) == 1
    assert "accelerate launch --quiet -m protoseg.train" in blocks(README, "setup: main")[0]


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_to_files_exist(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_named_modules_and_configs_exist(path):
    text = path.read_text()
    for module in set(re.findall(r"-m ((?:protoseg|export|serving|benchmarks)[\w.]*)", text)):
        name = module.rstrip(".")
        file = PROJECT_ROOT / (name.replace(".", "/") + ".py")
        assert file.exists() or (file.with_suffix("") / "__main__.py").exists(), f"{path.name}: {name}"
    for config in set(re.findall(r"configs/[\w.]+\.yaml", text)):
        assert (PROJECT_ROOT / config).exists(), f"{path.name}: {config}"


def test_settings_named_in_the_docs_exist():
    from protoseg.config.sections import Config

    sections = dict(Config.model_fields)
    for path in (
        PROJECT_ROOT / "README.md",
        PROJECT_ROOT / "docs" / "training.md",
        PROJECT_ROOT / "docs" / "method.md",
    ):
        for section, key in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", path.read_text()):
            if section in sections and key != "png":
                assert key in sections[section].annotation.model_fields, f"{path.name}: {section}.{key}"


def wait_until_ready(process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the service ended"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen("http://127.0.0.1:3000/readyz", timeout=5) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError("the service did not get ready")


@pytest.mark.slow
def test_commands_of_the_readme_work_as_printed(tmp_path):
    environment = quiet_environment() | {
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    # the run that the README's first command made, where CI has just run it
    finished = os.environ.get("README_QUICKSTART")
    if finished:
        shutil.copytree(finished, tmp_path / "runs" / "quickstart", ignore=shutil.ignore_patterns("bundle"))
    else:
        (tmp_path / "short.yaml").write_text(yaml.safe_dump(short_quickstart()))

    def run(command):
        return subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600
        )

    if not finished:
        done = run("protoseg train --config short.yaml")
        assert done.returncode == 0, done.stderr
    server = None
    try:
        for command in "".join(blocks(README, "run")).strip().splitlines():
            if command.startswith("bentoml serve"):
                server = subprocess.Popen(
                    shlex.split(command), cwd=tmp_path, env=environment, start_new_session=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                wait_until_ready(server)
                continue
            done = run(command)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    finally:
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)
    mask = (tmp_path / "mask.png").read_bytes()
    assert mask.startswith(b"\x89PNG")
    # what is served is what was trained: the offline mask of the same image, byte for byte in content
    import numpy as np
    from PIL import Image

    offline = np.array(Image.open(tmp_path / "predictions" / "masks" / "val_0000.png"))
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")), offline)
    # the lines of Python, on the same run
    Image.open(tmp_path / "scenes" / "images" / "val_0000.png").save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(import protoseg\n.*?)```", README, re.S)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("photo*"))


@pytest.mark.slow
def test_the_configuration_for_own_images_works_as_printed(tmp_path):
    import numpy as np
    from PIL import Image

    (text,) = re.findall(r"```yaml\n(data:.*?)```", README, re.S)
    (block,) = re.findall(r"```bash\n(protoseg check --config my\.yaml.*?)```", README, re.S)
    rng = np.random.default_rng(0)
    (tmp_path / "unlabeled").mkdir()
    for name in ("labeled", "val"):
        lines = []
        for number in range(4):
            crack = np.zeros((64, 64), np.uint8)
            crack[8 * number + 4 : 8 * number + 12] = 255
            photo = np.where(crack[..., None] > 0, 40, 200) + rng.integers(0, 20, (64, 64, 3))
            Image.fromarray(photo.astype(np.uint8)).save(tmp_path / f"{name}_{number}.png")
            Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "unlabeled" / f"{name}_{number}.jpg")
            Image.fromarray(crack).save(tmp_path / f"{name}_{number}_mask.png")
            lines.append(f"{name}_{number}.png {name}_{number}_mask.png")
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    for printed, small in (
        ("/path/to/data", str(tmp_path)), ("[512, 512]", "[64, 64]"), ("max_steps: 4000", "max_steps: 4"),
    ):  # fmt: skip
        assert printed in text
        text = text.replace(printed, small)
    (tmp_path / "my.yaml").write_text(text)
    environment = quiet_environment() | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    }
    for command in block.strip().splitlines():
        done = subprocess.run(
            shlex.split(command, comments=True), cwd=tmp_path, env=environment, text=True,
            capture_output=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "cracks" / "checkpoint" / "config.json").is_file()
