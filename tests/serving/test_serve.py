from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from serving import serve


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Commands that would take this process's place, with their environment."""
    calls: list[Any] = []
    for name in list(os.environ):
        if name.startswith("PROTOSEG_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(serve, "become", lambda command, environ: calls.append((command, environ)) or 3)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_bundle_is_served_on_localhost(
    started: list[Any], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main([str(bundle)]) == 3
    ((command, environ),) = started
    assert command[1:] == ["-m", "bentoml", "serve", "serving:svc", "--host", "127.0.0.1", "--port", "3000"]
    assert command[0] == sys.executable
    assert environ["PROTOSEG_MODEL"] == str(bundle.resolve())
    out = capsys.readouterr().out
    assert "http://localhost:3000" in out
    assert "curl -F image=@photo.jpg http://localhost:3000/v1/segment -o mask.png" in out


def test_settings_reach_the_environment_of_the_service(
    started: list[Any], bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path.cwd() / "run").mkdir()
    (Path.cwd() / "run" / "bundle").symlink_to(bundle)
    monkeypatch.setenv("PROTOSEG_QUEUE", "5")
    monkeypatch.setenv("PROTOSEG_RATE", "7")
    key = hashlib.sha256(b"secret").hexdigest()
    words = ["run", "queue=64", "--workers", "2", "--host", "0.0.0.0", "--port", "81", "ui=false"]
    assert serve.main([*words, f"api_keys={key}", "--device", "cpu"]) == 3
    ((command, environ),) = started
    expected = {"QUEUE": "64", "RATE": "7", "WORKERS": "2", "UI": "false", "DEVICE": "cpu", "API_KEYS": key}
    assert {name: environ[f"PROTOSEG_{name}"] for name in expected} == expected
    assert command[-4:] == ["--host", "0.0.0.0", "--port", "81"]
    out = capsys.readouterr().out
    assert "open to other machines" in out
    assert "Authorization: Bearer" in out


def test_the_newest_bundle_below_the_working_folder(started: list[Any], bundle: Path) -> None:
    (Path.cwd() / "runs" / "a").mkdir(parents=True)
    (Path.cwd() / "runs" / "a" / "bundle").symlink_to(bundle)
    assert serve.main([]) == 3
    assert started[0][1]["PROTOSEG_MODEL"] == str(bundle.resolve())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gone"], "gone is no folder; make one with: protoseg export RUN"),
        (["."], ". has no bundle (no manifest.json)"),
        (["a", "b"], "one bundle is served, got a and b"),
        (["quue=3"], "quue is no setting of the service: model, backend"),
        (["queue=many"], "PROTOSEG_QUEUE"),
        (["--config", "none.yaml"], "PROTOSEG_CONFIG none.yaml cannot be read"),
    ],
)
def test_what_cannot_be_served(
    started: list[Any], words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert not started


def test_without_a_bundle(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serving.model.bundle.PROJECT_ROOT", tmp_path)
    assert serve.main([]) == 1
    assert "no bundle found (no runs/*/bundle in" in capsys.readouterr().err
    assert not started
