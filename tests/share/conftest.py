from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from share.hub_server import WRITER, Hub, running_hub
from tiny import photo, tiny_info, tiny_segmenter

from benchmarks.serving_bundle import make_bundle
from protoseg.checkpoint import CheckpointInfo, save_checkpoint
from protoseg.config.data import DataConfig

PRIVATE = "/home/somebody/secret-client/camvid"


def shared_info() -> CheckpointInfo:
    """A description with metrics, and with paths of a machine."""
    plain = tiny_info()
    names = [item.name for item in plain.classes]
    val = {
        "miou": {"linear": 0.5, "prototype": 0.61234, "fused": None},
        "pixel_accuracy": {"linear": 0.9, "prototype": 0.91},
        "per_class": {
            "linear": dict.fromkeys(names, 0.5),
            "prototype": {names[0]: 0.8, names[1]: 0.3, names[2]: None},
        },
        "num_images": 7,
    }  # fmt: skip
    data = DataConfig(
        kind="files", root=PRIVATE, labeled="lists/labeled.txt", val="../elsewhere/val.txt", classes=names
    )
    model = plain.model.model_copy(update={"pretrained": "~/weights/encoder.safetensors"})
    return plain.model_copy(
        update={"metrics": {"step": 1, "val": val}, "data": data, "model": model,
                "data_hashes": {"labeled": "a" * 64, "val": "b" * 64}}
    )  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that may be in one."""
    folder = tmp_path_factory.mktemp("runs") / "cracks"
    save_checkpoint(folder / "checkpoint", tiny_segmenter(), shared_info(), tiny_segmenter(seed=5).network)
    make_bundle(folder / "bundle", created="2026-01-01T00:00:00+00:00")
    (folder / "pictures").mkdir()
    (folder / "state" / "step_1").mkdir(parents=True)
    (folder / "state" / "step_1" / "random_states_0.pkl").write_bytes(b"pickle")
    for name in ("curves.png", "pictures/step_00000001.png", "pictures/step_00000002.png"):
        Image.fromarray(photo(1)).save(folder / name)
    (folder / "config.yaml").write_text(f"run:\n  name: cracks\ndata:\n  root: {PRIVATE}\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """Its copy, to write into."""
    return Path(shutil.copytree(original, tmp_path / "cracks"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, with a token that may write and an empty cache."""
    with running_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SHARED_BLOBS", True, raising=False)
        yield served
